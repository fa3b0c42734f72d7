//! Spans of time as people write and read them.

use std::time::Duration;

/// A time with its unit: 500us, 20ms, 5s.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| format!("{text:?} is not a time"))?;
    let unit = match &text[split..] {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" | "m" => 60.0,
        unit => return Err(format!("{unit:?} is not a unit of time: use ns, us, ms, s or min")),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|error| error.to_string())
}

/// Microseconds as a person reads them.
pub fn span(micros: f64) -> String {
    match micros {
        0.0..10.0 => format!("{micros:.2}µs"),
        10.0..1e3 => format!("{micros:.1}µs"),
        1e3..1e6 => format!("{:.2}ms", micros / 1e3),
        _ => format!("{:.2}s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        assert_eq!(parse_span("1.5ms").unwrap(), Duration::from_micros(1500));
        assert_eq!(parse_span("2s").unwrap(), Duration::from_secs(2));
        for text in ["5", "ms", "1h"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_have_three_digits_and_a_unit() {
        assert_eq!(span(1.234), "1.23µs");
        assert_eq!(span(999.94), "999.9µs");
        assert_eq!(span(1_500.0), "1.50ms");
        assert_eq!(span(2_500_000.0), "2.50s");
    }
}
