use super::*;
use crate::admin_command::{Classes, MemcachedKnobs};
use crate::{Answer, Limits};
use bumpalo::Bump;
use ringlane_types::hash::HashSecret;

const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// What a line asks of the node, or what is answered at once.
fn told(text: &str) -> String {
    let (scratch, limits) = (Bump::new(), Limits::default());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(0),
        scratch: &scratch,
    };
    let input = format!("{text}\r\n");
    match crate::text::TextDecoder::default().next(input.as_bytes(), &context) {
        Step::Admin { consumed, command, reply } => {
            assert_eq!(consumed, input.len());
            let quiet = reply.form == ReplyForm::Text(TextForm::Node { noreply: true });
            format!("{command:?}{}", if quiet { " quietly" } else { "" })
        }
        Step::Answer { consumed, answer, skip: 0 } => {
            assert_eq!(consumed, input.len());
            match answer {
                Answer::Silence => "silence".into(),
                Answer::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            }
        }
        Step::Close => "close".into(),
        other => panic!("{other:?}"),
    }
}

fn asks(text: &str, command: AdminCommand<'_>) {
    assert_eq!(told(text), format!("{command:?}"), "{text}");
}

#[test]
fn version_and_quit_ignore_their_arguments() {
    let version = format!("VERSION {}\r\n", crate::VERSION);
    assert_eq!(told("version"), version);
    assert_eq!(told("version noreply"), version);
    assert_eq!(told("quit noreply"), "close");
}

#[test]
fn administration_is_recognised_behind_leading_spaces() {
    asks("  verbosity 1", AdminCommand::Verbosity(1));
    assert_eq!(told(" get k"), "ERROR\r\n");
    assert_eq!(told(" mg k"), "ERROR\r\n");
}

#[test]
fn flush_all_resolves_its_delay_like_an_exptime() {
    for at_once in ["flush_all", "flush_all 0", "flush_all -5", "flush_all  "] {
        asks(at_once, AdminCommand::FlushAll { at: NOW });
    }
    let later = Instant::from_millis(NOW.as_millis() + 10_000);
    asks("flush_all 10", AdminCommand::FlushAll { at: later });
    let absolute = Instant::from_millis(1_800_000_000_000);
    asks("flush_all 1800000000", AdminCommand::FlushAll { at: absolute });
    assert_eq!(
        told("flush_all noreply"),
        format!("{:?} quietly", AdminCommand::FlushAll { at: NOW })
    );
    assert!(told("flush_all 10 noreply").ends_with("quietly"));
    assert_eq!(told("flush_all x"), "CLIENT_ERROR invalid exptime argument\r\n");
    assert_eq!(told("flush_all x noreply"), "silence");
}

#[test]
fn verbosity_above_two_means_two() {
    asks("verbosity 7", AdminCommand::Verbosity(2));
    for bad in ["verbosity", "verbosity x", "verbosity -1"] {
        assert_eq!(told(bad), "CLIENT_ERROR bad command line format\r\n", "{bad}");
    }
    assert_eq!(told("verbosity noreply"), "silence");
}

#[test]
fn memory_limit_is_judged_by_its_range() {
    asks("cache_memlimit 8", AdminCommand::MemoryLimit { mebibytes: 8 });
    assert!(told("cache_memlimit 7").starts_with("MEMLIMIT_TOO_SMALL "));
    assert!(told("cache_memlimit 1000000001").contains("megabytes not bytes"));
    assert_eq!(told("cache_memlimit x"), "ERROR\r\n");
    assert_eq!(told("cache_memlimit"), "ERROR\r\n");
}

#[test]
fn shutdown_knows_one_mode() {
    asks("shutdown", AdminCommand::Shutdown { mode_is_known: true });
    asks("shutdown graceful", AdminCommand::Shutdown { mode_is_known: true });
    asks("shutdown now", AdminCommand::Shutdown { mode_is_known: false });
}

#[test]
fn stats_arguments_are_passed_on_and_cachedump_is_checked() {
    asks("stats", AdminCommand::Stats { argument: b"" });
    asks("stats  detail  on ", AdminCommand::Stats { argument: b"detail  on" });
    asks("stats noreply", AdminCommand::Stats { argument: b"noreply" });
    asks("stats cachedump 1 0", AdminCommand::CacheDump { class: 1, limit: 0 });
    assert_eq!(told("stats cachedump 1"), "CLIENT_ERROR bad command line\r\n");
    assert_eq!(told("stats cachedump 256 0"), "CLIENT_ERROR Illegal slab id\r\n");
    assert_eq!(told("stats cachedump x 0"), "CLIENT_ERROR bad command line format\r\n");
}

#[test]
fn lru_knobs_are_checked_before_they_are_turned() {
    asks("lru mode flat", AdminCommand::SetKnob(MemcachedKnob::Segmented(false)));
    asks("lru temp_ttl 60", AdminCommand::SetKnob(MemcachedKnob::TemporaryTtl(Some(60))));
    asks("lru temp_ttl -1", AdminCommand::SetKnob(MemcachedKnob::TemporaryTtl(None)));
    asks(
        "lru tune 10 25 0.1 2.0",
        AdminCommand::SetKnob(MemcachedKnob::ListShares {
            hot_percent: 10,
            warm_percent: 25,
            hot_age_hundredths: 10,
            warm_age_hundredths: 200,
        }),
    );
    assert_eq!(told("lru tune 60 25 0.1 2.0"), "ERROR hot and warm pcts must not exceed 80\r\n");
    assert!(told("lru tune 10 25 0 2.0").contains("must be greater than 0"));
    for bad in
        ["lru", "lru mode", "lru mode x", "lru temp_ttl x", "lru tune 1 2 3", "lru tune 1 2 nan 1"]
    {
        assert_eq!(told(bad), "ERROR\r\n", "{bad}");
    }
}

#[test]
fn crawler_commands_want_their_exact_arguments() {
    asks("lru_crawler enable", AdminCommand::SetKnob(MemcachedKnob::Crawler(true)));
    asks("lru_crawler crawl all", AdminCommand::Crawl { classes: b"all" });
    asks("lru_crawler metadump 1,2", AdminCommand::Dump { keys_only: false, classes: b"1,2" });
    asks("lru_crawler mgdump hash", AdminCommand::Dump { keys_only: true, classes: b"hash" });
    asks("lru_crawler tocrawl 5", AdminCommand::SetKnob(MemcachedKnob::CrawlerItems(5)));
    asks(
        "lru_crawler sleep 1000000",
        AdminCommand::SetKnob(MemcachedKnob::CrawlerSleep(1_000_000)),
    );
    assert!(told("lru_crawler sleep 1000001").contains("one second or less"));
    assert_eq!(told("lru_crawler sleep x"), "CLIENT_ERROR bad command line format\r\n");
    for bad in ["lru_crawler", "lru_crawler x", "lru_crawler crawl", "lru_crawler crawl 1 2"] {
        assert_eq!(told(bad), "ERROR\r\n", "{bad}");
    }
}

#[test]
fn slab_commands_are_checked() {
    asks("slabs reassign 1 2", AdminCommand::ReassignPage { from: 1, to: 2 });
    asks("slabs reassign -1 2", AdminCommand::ReassignPage { from: -1, to: 2 });
    asks("slabs automove 2", AdminCommand::SetKnob(MemcachedKnob::Automove(2)));
    asks("slabs automove ratio 0.75", AdminCommand::SetKnob(MemcachedKnob::AutomoveRatio(75)));
    asks("slabs automove window 30", AdminCommand::SetKnob(MemcachedKnob::AutomoveWindow(30)));
    assert!(told("slabs automove window 2").contains("too low or too high"));
    assert_eq!(told("slabs automove 3"), "ERROR\r\n");
    assert_eq!(told("slabs automove x"), "CLIENT_ERROR bad command line format\r\n");
    assert_eq!(told("slabs reassign x 2"), "CLIENT_ERROR bad command line format\r\n");
    for bad in ["slabs", "slabs reassign 1", "slabs automove", "slabs x y"] {
        assert_eq!(told(bad), "ERROR\r\n", "{bad}");
    }
}

#[test]
fn the_crawler_can_only_be_started_when_it_is_stopped() {
    let mut knobs = MemcachedKnobs::default();
    assert_eq!(knobs.apply(MemcachedKnob::Crawler(true)), AdminAnswer::CrawlerNotStarted);
    assert_eq!(knobs.apply(MemcachedKnob::Crawler(false)), AdminAnswer::Done);
    assert_eq!(knobs.crawl(b"all", 1), AdminAnswer::CrawlerDisabled);
    assert_eq!(knobs.apply(MemcachedKnob::Crawler(true)), AdminAnswer::Done);
    assert_eq!(knobs.crawl(b"all", 1), AdminAnswer::Done);
    assert_eq!(knobs.crawl(b"1,2", 0), AdminAnswer::CrawlerNothingToDo);
    assert_eq!(knobs.crawl(b"256", 1), AdminAnswer::BadClass);
}

#[test]
fn classes_are_all_or_some_that_can_exist() {
    assert_eq!(Classes::parse(b"all"), Some(Classes::All));
    assert_eq!(Classes::parse(b"hash"), Some(Classes::Hash));
    assert_eq!(Classes::parse(b"1,63"), Some(Classes::Set([1 << 1 | 1 << 63, 0, 0, 0])));
    assert_eq!(Classes::parse(b"64,255"), Some(Classes::Set([0, 1, 0, 1 << 63])));
    assert!(Classes::only(70).include(70) && !Classes::only(70).include(6));
    for bad in [&b""[..], b"0", b"256", b"1,", b"x", b"1 2"] {
        assert_eq!(Classes::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn every_answer_is_one_line_and_noreply_silences_it() {
    let mut out = Vec::new();
    let reply =
        |noreply| Reply { form: ReplyForm::Text(TextForm::Node { noreply }), key: b"", tail: b"" };
    encode_admin(&reply(false), AdminAnswer::ShutdownNotEnabled, &mut out);
    assert_eq!(out, b"SERVER_ERROR: shutdown not enabled\r\n");
    out.clear();
    encode_admin(&reply(true), AdminAnswer::Done, &mut out);
    assert_eq!(out, b"");
}
