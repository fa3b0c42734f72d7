//! The statistics as JSON: an object of topics, each an object of memcached's names.
//!
//! Names are those of the text protocol (`items:3:number`), so that users of `stats` know them.
//! Values that every JSON parser reads as the same number are numbers; everything else is a string.

use std::fmt::Write;

use super::{Snapshot, Topic, render as render_topic};

/// Topics of the object with their names. Sizes are omitted, since counting them means visiting
/// every item.
const TOPICS: [(&str, Topic); 6] = [
    ("general", Topic::General),
    ("settings", Topic::Settings),
    ("items", Topic::Items),
    ("slabs", Topic::Slabs),
    ("conns", Topic::Connections),
    ("cores", Topic::Cores),
];

/// Renders all topics.
pub fn render(snapshot: &Snapshot<'_>) -> String {
    let mut text = String::with_capacity(16 << 10);
    for (number, (name, topic)) in TOPICS.into_iter().enumerate() {
        text.push_str(if number == 0 { "{" } else { "},\n" });
        write!(text, "\"{name}\":{{").expect("a string takes everything");
        let mut first = true;
        render_topic(topic, snapshot, &mut |name, value| {
            text.push_str(if first { "\n" } else { ",\n" });
            first = false;
            string(&mut text, &name.to_string());
            text.push(':');
            let value = value.to_string();
            if is_number(&value) { text.push_str(&value) } else { string(&mut text, &value) }
        });
    }
    text.push_str("}}\n");
    text
}

/// Whether `text` is a JSON number: digits, optionally a fraction, no leading zeros.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole) && digits(fraction) && (whole == "0" || !whole.starts_with('0'))
}

fn string(text: &mut String, value: &str) {
    text.push('"');
    for char in value.chars() {
        match char {
            '"' | '\\' => text.extend(['\\', char]),
            char if char.is_control() => {
                write!(text, "\\u{:04x}", char as u32).expect("a string takes everything");
            }
            char => text.push(char),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_json_reads_as_the_same_number_goes_unquoted() {
        for number in ["0", "7", "1700000000", "0.80", "12.000005"] {
            assert!(is_number(number), "{number}");
        }
        for other in ["", "-1", "007", "0.1.0", ".5", "5.", "1e9", "yes", "NULL", "0x7"] {
            assert!(!is_number(other), "{other}");
        }
    }

    #[test]
    fn strings_are_escaped() {
        let mut text = String::new();
        string(&mut text, "a\"b\\c\nd\u{1}é");
        assert_eq!(text, "\"a\\\"b\\\\c\\u000ad\\u0001é\"");
    }
}
