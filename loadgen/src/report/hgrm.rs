//! The `.hgrm` form of a histogram, which HdrHistogram's plotting tools read. Milliseconds.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Percentile by percentile, finer towards the tail. `notes` become comments at the end.
pub fn text(histogram: &Histogram<u64>, notes: &[&str]) -> String {
    let millis = |ns: f64| ns / 1e6;
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut last = None;
    for step in histogram.iter_quantiles(5) {
        if last.replace(step.value_iterated_to()) == Some(step.value_iterated_to()) {
            continue;
        }
        let (value, quantile) = (millis(step.value_iterated_to() as f64), step.quantile());
        let total = histogram.count_between(0, step.value_iterated_to());
        let _ = write!(out, "{value:12.6} {quantile:2.12} {total:10}");
        let _ = match quantile < 1.0 {
            true => writeln!(out, " {:14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(out),
        };
    }
    let (mean, deviation) = (millis(histogram.mean()), millis(histogram.stdev()));
    let _ = writeln!(out, "#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]");
    let (max, count) = (millis(histogram.max() as f64), histogram.len());
    let _ = writeln!(out, "#[Max     = {max:12.6}, Total count    = {count:12}]");
    let _ = writeln!(
        out,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        histogram.buckets(),
        // Three significant digits take 2048 sub-buckets.
        2048
    );
    for note in notes {
        let _ = writeln!(out, "#[{note}]");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_holds_everything() {
        let mut histogram = crate::histogram::spans();
        (1..=1000u64).for_each(|i| histogram.record(i * 1_000_000).unwrap());
        let text = text(&histogram, &["a note"]);
        assert!(text.ends_with("#[a note]\n"));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("Percentile"));
        let fields: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(fields.len(), 4, "{}", lines[2]);
        let last = lines.iter().rev().find(|line| !line.starts_with('#')).unwrap();
        let fields: Vec<f64> =
            last.split_whitespace().map(|field| field.parse().unwrap()).collect();
        assert!((fields[0] - 1000.0).abs() < 1.0, "{last}");
        assert_eq!(fields[1..], [1.0, 1000.0]);
        assert!(text.contains("Total count    =         1000"));
    }
}
