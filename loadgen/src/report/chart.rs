//! Line charts as SVG text: no script, no file beside the page.

use std::fmt::Write;

/// A chart with one line per series.
pub struct Chart<'a> {
    /// What it shows.
    pub title: &'a str,
    /// The horizontal axis.
    pub x: Axis<'a>,
    /// The vertical axis.
    pub y: Axis<'a>,
    /// The lines.
    pub series: Vec<Series>,
}

/// One axis.
pub struct Axis<'a> {
    /// Its label.
    pub label: &'a str,
    /// How values are spread along it.
    pub scale: Scale,
    /// How a value is written.
    pub format: fn(f64) -> String,
}

/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// Evenly in powers of ten. Values must be above 0.
    Log,
    /// Parts of a whole, 0 to 1, evenly in nines: 0, 90 %, 99 %, 99.9 %.
    Nines,
}

/// One line.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in order.
    pub points: Vec<(f64, f64)>,
    /// Marks at the points, with their values as tooltips.
    pub marked: bool,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
/// Height of a line of the legend, which stands below the axis.
const LEGEND_LINE: f64 = 17.0;
/// Width of a letter, about.
const LETTER: f64 = 6.6;

/// Distinguishable on light and dark, and by most eyes.
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f"];

/// An axis with its bounds in place.
struct Placed {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Chart<'_> {
    /// The chart as an `<svg>` element; a sentence if there is nothing to draw.
    pub fn svg(&self) -> String {
        let usable = |&(x, y): &(f64, f64)| self.x.scale.takes(x) && self.y.scale.takes(y);
        let points = || self.series.iter().flat_map(|series| &series.points).filter(|p| usable(p));
        if points().next().is_none() {
            return format!("<p>{}: nothing was measured.</p>\n", escaped(self.title));
        }
        // A second without answers has no latency, and is on the axis all the same.
        let all = self.series.iter().flat_map(|series| &series.points).map(|p| p.0);
        let all = all.filter(|&x| self.x.scale.takes(x));
        let x = Placed::new(self.x.scale, all, LEFT, WIDTH - RIGHT);
        let y = Placed::new(self.y.scale, points().map(|p| p.1), HEIGHT - BOTTOM, TOP);
        let legend = self.legend_places();
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\"><title>{}</title>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"16\">{}</text>\n",
            HEIGHT + LEGEND_LINE * legend.last().map_or(0.0, |last| last.1 + 1.0),
            escaped(self.title),
            escaped(self.title)
        );
        self.grid(&mut svg, &x, &y);
        for (number, series) in self.series.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            let line: String = series
                .points
                .iter()
                .filter(|p| usable(p))
                .map(|&(px, py)| format!("{:.1},{:.1} ", x.place(px), y.place(py)))
                .collect();
            let (line, dashes) = (line.trim_end(), dashes(number));
            let _ = writeln!(svg, "<polyline points=\"{line}\" stroke=\"{color}\"{dashes}/>");
            for &(px, py) in series.points.iter().filter(|p| series.marked && usable(p)) {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"><title>{}: {}, {}\
                     </title></circle>",
                    x.place(px),
                    y.place(py),
                    escaped(&series.name),
                    escaped(&(self.x.format)(px)),
                    escaped(&(self.y.format)(py)),
                );
            }
        }
        self.legend(&mut svg, &legend);
        svg.push_str("</svg>\n");
        svg
    }

    fn grid(&self, svg: &mut String, x: &Placed, y: &Placed) {
        for value in x.ticks() {
            let at = x.place(value);
            let text = (self.x.format)(value);
            // One at the right end would be cut off.
            let middle = at.min(WIDTH - LETTER / 2.0 * text.chars().count() as f64);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
                 <text class=\"tick\" x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                escaped(&text),
            );
        }
        for value in y.ticks() {
            let at = y.place(value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                escaped(&(self.y.format)(value)),
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <text class=\"label\" x=\"{}\" y=\"16\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 10.0,
            escaped(self.x.label),
            WIDTH - RIGHT,
            escaped(self.y.label),
        );
    }

    fn legend(&self, svg: &mut String, places: &[(f64, f64)]) {
        for (number, (series, (at, line))) in self.series.iter().zip(places).enumerate() {
            let (color, dashes) = (COLORS[number % COLORS.len()], dashes(number));
            let y = HEIGHT + LEGEND_LINE * line;
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.0}\" x2=\"{:.0}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"{color}\" \
                 stroke-width=\"4\"{dashes}/><text class=\"tick\" x=\"{:.0}\" y=\"{:.0}\">{}</text>",
                at + 14.0,
                y + 6.0,
                y + 6.0,
                at + 18.0,
                y + 10.0,
                escaped(&series.name),
            );
        }
    }

    /// Where each name of the legend begins, and on which of its lines.
    fn legend_places(&self) -> Vec<(f64, f64)> {
        let (mut at, mut line) = (LEFT, 0.0);
        let place = |series: &Series| {
            let width = 32.0 + LETTER * series.name.chars().count() as f64;
            if at > LEFT && at + width > WIDTH - RIGHT {
                (at, line) = (LEFT, line + 1.0);
            }
            let place = (at, line);
            at += width;
            place
        };
        self.series.iter().map(place).collect()
    }
}

/// Series with the same color as an earlier one are dashed.
fn dashes(number: usize) -> &'static str {
    if (number / COLORS.len()) % 2 == 1 { " stroke-dasharray=\"6 3\"" } else { "" }
}

impl Scale {
    fn takes(self, value: f64) -> bool {
        match self {
            Scale::Linear => value.is_finite(),
            Scale::Log => value.is_finite() && value > 0.0,
            Scale::Nines => (0.0..1.0).contains(&value),
        }
    }

    /// Onto a line on which distances look right.
    fn along(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.log10(),
            Scale::Nines => -(1.0 - value).log10(),
        }
    }
}

impl Placed {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.map(|value| scale.along(value)) {
            (low, high) = (low.min(value), high.max(value));
        }
        match scale {
            Scale::Linear => (low, high) = (low.min(0.0), high * 1.05),
            // A part of a decade would have no tick in it.
            Scale::Log => (low, high) = (low.floor(), high.ceil()),
            Scale::Nines => low = 0.0,
        }
        if high <= low {
            high = low + 1.0;
        }
        Self { scale, low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let part = (self.scale.along(value) - self.low) / (self.high - self.low);
        self.from + part * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                // What stands along such an axis is counted.
                let raw = ((self.high - self.low) / 6.0).max(1.0);
                let power = 10f64.powf(raw.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .into_iter()
                    .map(|factor| factor * power)
                    .find(|&step| step >= raw)
                    .unwrap_or(raw);
                let first = (self.low / step).ceil() as i64;
                (first..).map(|i| i as f64 * step).take_while(|&tick| tick <= self.high).collect()
            }
            Scale::Log => {
                (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power)).collect()
            }
            Scale::Nines => (0..=self.high as i32).map(|nines| 1.0 - 10f64.powi(-nines)).collect(),
        }
    }
}

/// Text that HTML takes as text.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> String {
        let axis = |scale| Axis { label: "a <label>", scale, format: |value| format!("{value}") };
        let series = vec![Series { name: "s".into(), points, marked: true }];
        Chart { title: "t", x: axis(scale), y: axis(Scale::Log), series }.svg()
    }

    #[test]
    fn points_stay_inside_and_text_is_escaped() {
        for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
            let svg = chart(scale, vec![(0.1, 1.0), (0.5, 20.0), (0.9999, 5000.0)]);
            let line = svg.lines().find(|line| line.starts_with("<polyline")).unwrap();
            for pair in line.split('"').nth(1).unwrap().split(' ') {
                let (x, y) = pair.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y)
                );
            }
            assert!(svg.contains("a &lt;label&gt;") && !svg.contains("a <label>"));
        }
    }

    #[test]
    fn the_last_tick_is_not_cut_off() {
        let axis = |scale| Axis { label: "", scale, format: |_| "99.999 %".into() };
        let points = vec![(0.0, 1.0), (0.99999, 2.0)];
        let series = vec![Series { name: "s".into(), points, marked: false }];
        let svg = Chart { title: "t", x: axis(Scale::Nines), y: axis(Scale::Log), series }.svg();
        let tick = svg.lines().rfind(|line| line.ends_with("\"middle\">99.999 %</text>")).unwrap();
        let x = tick.split("x=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert!(x.parse::<f64>().unwrap() + 4.0 * LETTER <= WIDTH, "{tick}");
    }

    #[test]
    fn nothing_and_a_single_point_are_drawn_too() {
        assert!(chart(Scale::Linear, vec![]).contains("nothing was measured"));
        assert!(chart(Scale::Log, vec![(0.0, 1.0)]).contains("nothing was measured"));
        assert!(!chart(Scale::Linear, vec![(1.0, 1.0)]).contains("NaN"));
    }

    #[test]
    fn a_point_that_has_no_height_keeps_its_place_along_the_axis() {
        let svg = chart(Scale::Linear, vec![(1.0, 5.0), (4.0, 0.0)]);
        let line = svg.lines().find(|line| line.starts_with("<polyline")).unwrap();
        let x: f64 = line.split(['"', ',']).nth(1).unwrap().parse().unwrap();
        assert!(x < WIDTH / 2.0, "{line}");
    }

    #[test]
    fn ticks_are_round() {
        let placed = Placed::new(Scale::Linear, [0.0, 93_000.0].into_iter(), 0.0, 1.0);
        let ticks = placed.ticks();
        assert_eq!(ticks, [0.0, 20_000.0, 40_000.0, 60_000.0, 80_000.0]);
        let placed = Placed::new(Scale::Linear, [1.0].into_iter(), 0.0, 1.0);
        assert_eq!(placed.ticks(), [0.0, 1.0]);
        let placed = Placed::new(Scale::Nines, [0.0, 0.9995].into_iter(), 0.0, 1.0);
        assert_eq!(placed.ticks().len(), 4);
    }
}
