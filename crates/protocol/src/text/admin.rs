//! Commands for the node: the part of memcached's protocol that operators type by hand.
//!
//! Arguments are validated here as far as possible without the node's state; the result is a
//! [`AdminCommand`], whose [`AdminAnswer`] becomes the line that memcached would send.

use super::line::{Line, Tokens};
use super::numbers::{strict_i32, strict_u32};
use super::{TextError, TextForm, answer, refuse, refuse_unless, silence, unknown};
use crate::admin_command::{AdminAnswer, AdminCommand, MemcachedKnob, SLAB_CLASSES_MAX};
use crate::{Context, Output, Reply, ReplyForm, Step};
use ringlane_types::time::{Deadline, Instant};

/// The answer to `version`: [`VERSION`](crate::VERSION), which a constant cannot be
/// joined from.
const VERSION_LINE: &[u8] = b"VERSION 1.6.45\r\n";

/// Smallest and largest `cache_memlimit`, in MiB.
const MEMORY_LIMIT_RANGE: std::ops::RangeInclusive<u32> = 8..=1_000_000_000;

/// Longest `lru_crawler sleep`, in microseconds.
const CRAWLER_SLEEP_MICROS_MAX: u32 = 1_000_000;

/// Maximum percentage that the HOT and WARM lists may use together.
const LIST_PERCENT_MAX: u64 = 80;

/// Shortest and longest `slabs automove window`, in seconds.
const AUTOMOVE_WINDOW_RANGE: std::ops::RangeInclusive<u32> = 3..=1800;

/// Decodes a line whose first token is not a command on keys. Unlike the others, these commands are
/// also recognised after leading spaces.
pub(super) fn decode<'b>(line: Line<'b>, context: &Context<'b>) -> Step<'b> {
    let mut tokens = Tokens::new(line.text);
    let name = tokens.next().unwrap_or(b"");
    let noreply = tokens.end_in_noreply();
    let outcome = match name {
        b"version" => return answer(line, VERSION_LINE),
        b"quit" => return Step::Close,
        b"stats" => return stats(tokens, line),
        b"watch" => return node(AdminCommand::Watch { names: tokens.rest() }, false, line),
        b"flush_all" => flush_all(tokens, noreply, context.now),
        b"verbosity" => verbosity(tokens),
        b"cache_memlimit" => memory_limit(tokens),
        b"shutdown" => {
            let mode_is_known = matches!(tokens.rest(), b"" | b"graceful");
            Ok(AdminCommand::Shutdown { mode_is_known })
        }
        b"lru" => lru(tokens),
        b"lru_crawler" => lru_crawler(tokens),
        b"slabs" => slabs(tokens),
        b"refresh_certs" => Err(Refusal::Line(b"Error TLS not enabled\r\n")),
        _ => return unknown(tokens, line),
    };
    match outcome {
        Ok(command) => node(command, noreply, line),
        Err(Refusal::Error(error)) => refuse_unless(noreply, line, error),
        Err(Refusal::Line(_)) if noreply => silence(line),
        Err(Refusal::Line(text)) => answer(line, text),
    }
}

/// Why an administration command is not executed.
enum Refusal {
    /// A general error.
    Error(TextError),
    /// An answer specific to this command.
    Line(&'static [u8]),
}

impl From<TextError> for Refusal {
    fn from(error: TextError) -> Self {
        Refusal::Error(error)
    }
}

type Outcome<'b> = Result<AdminCommand<'b>, Refusal>;

fn node<'b>(command: AdminCommand<'b>, noreply: bool, line: Line<'b>) -> Step<'b> {
    let form = ReplyForm::Text(TextForm::Node { noreply });
    Step::Admin { consumed: line.bytes, command, reply: Reply { form, key: b"", tail: b"" } }
}

/// `stats [<argument>]`. `noreply` has no effect.
fn stats<'b>(tokens: Tokens<'b>, line: Line<'b>) -> Step<'b> {
    let argument = tokens.rest();
    let mut arguments = tokens;
    if arguments.next() != Some(b"cachedump") {
        return node(AdminCommand::Stats { argument }, false, line);
    }
    let (Some(class), Some(limit)) = (arguments.next(), arguments.next()) else {
        return answer(line, b"CLIENT_ERROR bad command line\r\n");
    };
    match (strict_u32(class), strict_u32(limit)) {
        (Some(class), Some(_)) if class >= SLAB_CLASSES_MAX => {
            answer(line, b"CLIENT_ERROR Illegal slab id\r\n")
        }
        (Some(class), Some(limit)) => node(AdminCommand::CacheDump { class, limit }, false, line),
        _ => refuse(line, TextError::CommandLine),
    }
}

/// `flush_all [<delay>] [noreply]`.
fn flush_all<'b>(mut tokens: Tokens<'b>, noreply: bool, now: Instant) -> Outcome<'b> {
    let delay = match tokens.next() {
        None => 0,
        Some(b"noreply") if noreply && tokens.rest().is_empty() => 0,
        Some(delay) => strict_i32(delay).ok_or(TextError::Exptime)?,
    };
    let at = if delay <= 0 {
        now
    } else {
        Instant::from_millis(Deadline::from_exptime(delay.into(), now).as_millis())
    };
    Ok(AdminCommand::FlushAll { at })
}

/// `verbosity <level> [noreply]`.
fn verbosity<'b>(mut tokens: Tokens<'b>) -> Outcome<'b> {
    let level = tokens.next().and_then(strict_u32).ok_or(TextError::CommandLine)?;
    Ok(AdminCommand::Verbosity(level.min(2)))
}

/// `cache_memlimit <MiB> [noreply]`.
fn memory_limit<'b>(mut tokens: Tokens<'b>) -> Outcome<'b> {
    let mebibytes = tokens.next().and_then(strict_u32).ok_or(TextError::Unknown)?;
    if mebibytes < *MEMORY_LIMIT_RANGE.start() {
        Err(Refusal::Line(b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"))
    } else if mebibytes > *MEMORY_LIMIT_RANGE.end() {
        Err(Refusal::Line(b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n"))
    } else {
        Ok(AdminCommand::MemoryLimit { mebibytes: mebibytes.into() })
    }
}

/// `lru mode|temp_ttl|tune ...`.
fn lru<'b>(mut tokens: Tokens<'b>) -> Outcome<'b> {
    let unknown = TextError::Unknown;
    let knob = match (tokens.next(), tokens.next()) {
        (Some(b"mode"), Some(b"flat")) => MemcachedKnob::Segmented(false),
        (Some(b"mode"), Some(b"segmented")) => MemcachedKnob::Segmented(true),
        (Some(b"temp_ttl"), Some(seconds)) => {
            let seconds = strict_i32(seconds).ok_or(unknown)?;
            MemcachedKnob::TemporaryTtl(u32::try_from(seconds).ok())
        }
        (Some(b"tune"), Some(hot)) => {
            let hot_percent = strict_u32(hot).ok_or(unknown)?;
            let warm_percent = tokens.next().and_then(strict_u32).ok_or(unknown)?;
            let hot_age = tokens.next().and_then(decimal).ok_or(unknown)?;
            let warm_age = tokens.next().and_then(decimal).ok_or(unknown)?;
            if u64::from(hot_percent) + u64::from(warm_percent) > LIST_PERCENT_MAX {
                return Err(Refusal::Line(b"ERROR hot and warm pcts must not exceed 80\r\n"));
            }
            if hot_age <= 0.0 || warm_age <= 0.0 {
                let line = b"ERROR hot/warm age factors must be greater than 0\r\n";
                return Err(Refusal::Line(line));
            }
            MemcachedKnob::ListShares {
                hot_percent,
                warm_percent,
                hot_age_hundredths: (hot_age * 100.0).round() as u32,
                warm_age_hundredths: (warm_age * 100.0).round() as u32,
            }
        }
        _ => return Err(unknown.into()),
    };
    Ok(AdminCommand::SetKnob(knob))
}

/// `lru_crawler enable|disable|crawl|tocrawl|sleep|metadump|mgdump ...`.
fn lru_crawler<'b>(tokens: Tokens<'b>) -> Outcome<'b> {
    let command = if let Some([word]) = tokens.exactly() {
        match word {
            b"enable" => AdminCommand::SetKnob(MemcachedKnob::Crawler(true)),
            b"disable" => AdminCommand::SetKnob(MemcachedKnob::Crawler(false)),
            _ => return Err(TextError::Unknown.into()),
        }
    } else if let Some([word, argument]) = tokens.exactly() {
        match word {
            b"crawl" => AdminCommand::Crawl { classes: argument },
            b"metadump" => AdminCommand::Dump { keys_only: false, classes: argument },
            b"mgdump" => AdminCommand::Dump { keys_only: true, classes: argument },
            b"tocrawl" => {
                let items = strict_u32(argument).ok_or(TextError::CommandLine)?;
                AdminCommand::SetKnob(MemcachedKnob::CrawlerItems(items))
            }
            b"sleep" => {
                let micros = strict_u32(argument).ok_or(TextError::CommandLine)?;
                if micros > CRAWLER_SLEEP_MICROS_MAX {
                    let line = b"CLIENT_ERROR sleep must be one second or less\r\n";
                    return Err(Refusal::Line(line));
                }
                AdminCommand::SetKnob(MemcachedKnob::CrawlerSleep(micros))
            }
            _ => return Err(TextError::Unknown.into()),
        }
    } else {
        return Err(TextError::Unknown.into());
    };
    Ok(command)
}

/// `slabs reassign|automove ...`.
fn slabs<'b>(mut tokens: Tokens<'b>) -> Outcome<'b> {
    if let Some([b"reassign", from, to]) = tokens.exactly() {
        let from = strict_i32(from).ok_or(TextError::CommandLine)?;
        let to = strict_i32(to).ok_or(TextError::CommandLine)?;
        return Ok(AdminCommand::ReassignPage { from, to });
    }
    let (Some(b"automove"), Some(level)) = (tokens.next(), tokens.next()) else {
        return Err(TextError::Unknown.into());
    };
    let ratio = |token: Option<&[u8]>, scale: f64| {
        let ratio = token.and_then(decimal).ok_or(TextError::Unknown)?;
        Ok::<_, Refusal>((ratio * scale).round() as u32)
    };
    Ok(AdminCommand::SetKnob(match level {
        b"ratio" => MemcachedKnob::AutomoveRatio(ratio(tokens.next(), 100.0)?),
        b"freeratio" => MemcachedKnob::AutomoveFreeRatio(ratio(tokens.next(), 10_000.0)?),
        b"window" => {
            let seconds = tokens.next().and_then(strict_u32).ok_or(TextError::CommandLine)?;
            if !AUTOMOVE_WINDOW_RANGE.contains(&seconds) {
                let line = b"CLIENT_ERROR automove window too low or too high\r\n";
                return Err(Refusal::Line(line));
            }
            MemcachedKnob::AutomoveWindow(seconds)
        }
        level => match strict_u32(level).ok_or(TextError::CommandLine)? {
            level @ 0..=2 => MemcachedKnob::Automove(level as u8),
            _ => return Err(TextError::Unknown.into()),
        },
    }))
}

/// A plain decimal fraction.
fn decimal(token: &[u8]) -> Option<f64> {
    std::str::from_utf8(token).ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Writes the outcome of a node command, unless the client suppressed replies.
pub fn encode_admin(reply: &Reply<'_>, answer: AdminAnswer, out: &mut impl Output) {
    if reply.form != ReplyForm::Text(TextForm::Node { noreply: true }) {
        out.bytes(node_line(answer));
    }
}

/// The line for each outcome of a node command.
const fn node_line(answer: AdminAnswer) -> &'static [u8] {
    match answer {
        AdminAnswer::Done => b"OK\r\n",
        AdminAnswer::StatsReset => b"RESET\r\n",
        AdminAnswer::Unknown => b"ERROR\r\n",
        AdminAnswer::DetailUsage => b"CLIENT_ERROR usage: stats detail on|off|dump\r\n",
        AdminAnswer::DetailNotAllowed => b"CLIENT_ERROR stats detail not allowed\r\n",
        AdminAnswer::CacheDumpNotAllowed => b"CLIENT_ERROR stats cachedump not allowed\r\n",
        AdminAnswer::FlushNotAllowed => b"CLIENT_ERROR flush_all not allowed\r\n",
        AdminAnswer::ShutdownNotEnabled => b"SERVER_ERROR: shutdown not enabled\r\n",
        AdminAnswer::ShutdownModeUnknown => b"CLIENT_ERROR invalid shutdown mode\r\n",
        AdminAnswer::MemoryLimitUnreachable => {
            b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n"
        }
        AdminAnswer::BadClass => b"BADCLASS invalid class id\r\n",
        AdminAnswer::ReassignBadClass => b"BADCLASS invalid src or dst class id\r\n",
        AdminAnswer::ReassignBusy => b"BUSY currently processing reassign request\r\n",
        AdminAnswer::ReassignNoSpare => b"NOSPARE source class has no spare pages\r\n",
        AdminAnswer::ReassignSame => b"SAME src and dst class are identical\r\n",
        AdminAnswer::CrawlerNotStarted => b"ERROR failed to start lru crawler thread\r\n",
        AdminAnswer::CrawlerDisabled => b"CLIENT_ERROR lru crawler disabled\r\n",
        AdminAnswer::CrawlerNothingToDo => b"NOTSTARTED no items to crawl\r\n",
        AdminAnswer::DumpNotAllowed { keys_only: false } => b"ERROR metadump not allowed\r\n",
        AdminAnswer::DumpNotAllowed { keys_only: true } => b"ERROR key dump not allowed\r\n",
        AdminAnswer::DumpPipelined { keys_only: false } => {
            b"ERROR cannot pipeline other commands before metadump\r\n"
        }
        AdminAnswer::DumpPipelined { keys_only: true } => {
            b"ERROR cannot pipeline other commands before mgdump\r\n"
        }
        AdminAnswer::WatchNotAllowed => b"CLIENT_ERROR watch commands not allowed\r\n",
    }
}

#[cfg(test)]
mod tests;
