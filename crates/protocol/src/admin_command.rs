//! Commands for the whole node rather than a key, and their outcomes.
//!
//! memcached lets clients set many knobs. Knobs without a counterpart here (the LRU crawler, slab
//! automoving, segmented LRU lists) are still accepted, validated and shown by `stats settings`, so
//! that tools that set them keep working: [`MemcachedKnobs`] stores them. Refused: answering a
//! fixed `OK`, since such tools read back what they have set.

use ringlane_types::time::Instant;

/// A command for the whole node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand<'b> {
    /// Statistics; the argument as sent, empty for the general ones. `stats reset` is one of them.
    Stats {
        /// The text after `stats`, without surrounding spaces.
        argument: &'b [u8],
    },
    /// Everything stored before `at` becomes a miss at that time.
    FlushAll {
        /// When; now or in the past means at once.
        at: Instant,
    },
    /// Log verbosity, as memcached counts it: 0 to 2.
    Verbosity(u32),
    /// A new memory limit in MiB.
    MemoryLimit {
        /// The limit, in MiB: 8 to 1,000,000,000.
        mebibytes: u64,
    },
    /// Stop the server, if the configuration lets clients do so;
    /// [`AdminAnswer::ShutdownNotEnabled`] otherwise. A successful shutdown is not answered: the
    /// connection closes.
    Shutdown {
        /// Whether the mode is valid; if not, and if clients may shut down at all, the answer is
        /// [`AdminAnswer::ShutdownModeUnknown`].
        mode_is_known: bool,
    },
    /// List all items' keys. Only as the first unanswered request of a connection, otherwise
    /// [`AdminAnswer::DumpPipelined`].
    Dump {
        /// `lru_crawler mgdump` rather than `metadump`.
        keys_only: bool,
        /// Requested slab classes as sent: `all`, `hash` or comma-separated numbers.
        classes: &'b [u8],
    },
    /// `stats cachedump`: some items of one class.
    CacheDump {
        /// Slab class number, below [`SLAB_CLASSES_MAX`].
        class: u32,
        /// Maximum items to list; 0 for all.
        limit: u32,
    },
    /// Turn the connection into a log stream.
    Watch {
        /// The stream names as sent, possibly unknown.
        names: &'b [u8],
    },
    /// Move a page from one slab class to another; -1 takes it from any.
    ReassignPage {
        /// Source class, or -1.
        from: i32,
        /// Destination class.
        to: i32,
    },
    /// Search some classes for expired items.
    Crawl {
        /// Slab classes as sent: `all` or comma-separated numbers.
        classes: &'b [u8],
    },
    /// Set one of memcached's knobs; see [`MemcachedKnobs::apply`].
    SetKnob(MemcachedKnob),
    /// The binary HELLO: answer with the topology.
    Hello,
}

/// One knob and its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemcachedKnob {
    /// `lru_crawler enable` or `disable`.
    Crawler(bool),
    /// `lru_crawler sleep`: microseconds, at most one second.
    CrawlerSleep(u32),
    /// `lru_crawler tocrawl`: items per run and class, 0 for all.
    CrawlerItems(u32),
    /// `lru mode segmented` rather than `flat`.
    Segmented(bool),
    /// `lru temp_ttl`: seconds, `None` disables it.
    TemporaryTtl(Option<u32>),
    /// `lru tune`: shares of the HOT and WARM lists.
    ListShares {
        /// Percentage of a class that HOT may use.
        hot_percent: u32,
        /// Percentage of a class that WARM may use.
        warm_percent: u32,
        /// HOT's age relative to COLD's, in hundredths.
        hot_age_hundredths: u32,
        /// WARM's age relative to COLD's, in hundredths.
        warm_age_hundredths: u32,
    },
    /// `slabs automove`: 0 to 2.
    Automove(u8),
    /// `slabs automove window`: seconds, 3 to 1,800.
    AutomoveWindow(u32),
    /// `slabs automove ratio`, in hundredths.
    AutomoveRatio(u32),
    /// `slabs automove freeratio`, in ten-thousandths.
    AutomoveFreeRatio(u32),
}

/// The values of memcached's knobs. One per node; the defaults are memcached's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemcachedKnobs {
    /// Whether the LRU crawler counts as running.
    pub crawler: bool,
    /// See [`MemcachedKnob::CrawlerSleep`].
    pub crawler_sleep_micros: u32,
    /// See [`MemcachedKnob::CrawlerItems`].
    pub crawler_items: u32,
    /// See [`MemcachedKnob::Segmented`].
    pub segmented: bool,
    /// See [`MemcachedKnob::TemporaryTtl`].
    pub temporary_ttl: Option<u32>,
    /// See [`MemcachedKnob::ListShares`].
    pub hot_percent: u32,
    /// See [`MemcachedKnob::ListShares`].
    pub warm_percent: u32,
    /// See [`MemcachedKnob::ListShares`].
    pub hot_age_hundredths: u32,
    /// See [`MemcachedKnob::ListShares`].
    pub warm_age_hundredths: u32,
    /// See [`MemcachedKnob::Automove`].
    pub automove: u8,
    /// See [`MemcachedKnob::AutomoveWindow`].
    pub automove_window: u32,
    /// See [`MemcachedKnob::AutomoveRatio`].
    pub automove_ratio_hundredths: u32,
    /// See [`MemcachedKnob::AutomoveFreeRatio`].
    pub automove_free_ratio_myriadths: u32,
    /// Whether requests are counted by key prefix: `stats detail on`.
    pub detail: bool,
    /// Memory for items of all cores in bytes, if `cache_memlimit` has changed it.
    pub memory_bytes: Option<u64>,
}

impl Default for MemcachedKnobs {
    fn default() -> Self {
        Self {
            crawler: true,
            crawler_sleep_micros: 100,
            crawler_items: 0,
            segmented: true,
            temporary_ttl: None,
            hot_percent: 20,
            warm_percent: 40,
            hot_age_hundredths: 20,
            warm_age_hundredths: 200,
            automove: 1,
            automove_window: 10,
            automove_ratio_hundredths: 80,
            automove_free_ratio_myriadths: 100,
            detail: false,
            memory_bytes: None,
        }
    }
}

impl MemcachedKnobs {
    /// Sets a knob.
    pub fn apply(&mut self, knob: MemcachedKnob) -> AdminAnswer {
        match knob {
            MemcachedKnob::Crawler(true) if self.crawler => return AdminAnswer::CrawlerNotStarted,
            MemcachedKnob::Crawler(on) => self.crawler = on,
            MemcachedKnob::CrawlerSleep(micros) => self.crawler_sleep_micros = micros,
            MemcachedKnob::CrawlerItems(items) => self.crawler_items = items,
            MemcachedKnob::Segmented(segmented) => self.segmented = segmented,
            MemcachedKnob::TemporaryTtl(seconds) => self.temporary_ttl = seconds,
            MemcachedKnob::ListShares {
                hot_percent,
                warm_percent,
                hot_age_hundredths,
                warm_age_hundredths,
            } => {
                self.hot_percent = hot_percent;
                self.warm_percent = warm_percent;
                self.hot_age_hundredths = hot_age_hundredths;
                self.warm_age_hundredths = warm_age_hundredths;
            }
            MemcachedKnob::Automove(level) => self.automove = level,
            MemcachedKnob::AutomoveWindow(seconds) => self.automove_window = seconds,
            MemcachedKnob::AutomoveRatio(ratio) => self.automove_ratio_hundredths = ratio,
            MemcachedKnob::AutomoveFreeRatio(ratio) => self.automove_free_ratio_myriadths = ratio,
        }
        AdminAnswer::Done
    }

    /// The answer to [`AdminCommand::Crawl`]. The TTL wheel has already reclaimed expired items, so
    /// there is never anything to find; only the request is validated.
    pub fn crawl(&self, classes: &[u8], item_count: u64) -> AdminAnswer {
        if !self.crawler {
            AdminAnswer::CrawlerDisabled
        } else if Classes::parse(classes).is_none_or(|classes| classes == Classes::Hash) {
            AdminAnswer::BadClass
        } else if item_count == 0 {
            AdminAnswer::CrawlerNothingToDo
        } else {
            AdminAnswer::Done
        }
    }
}

/// Slab class numbers are below this: steps finer than memcached's need more than its 64.
pub const SLAB_CLASSES_MAX: u32 = 256;

/// The slab classes of a dump or crawl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classes {
    /// All of them.
    All,
    /// All of them, in the order of the index: dumps only.
    Hash,
    /// Those whose bit is set.
    Set([u64; SLAB_CLASSES_MAX as usize / 64]),
}

impl Classes {
    /// Parses `all`, `hash` or comma-separated class numbers; `None` for a class that cannot exist.
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"all" => Some(Classes::All),
            b"hash" => Some(Classes::Hash),
            _ => {
                let mut set = [0u64; SLAB_CLASSES_MAX as usize / 64];
                for number in text.split(|&byte| byte == b',') {
                    let class = super::text::numbers::strict_u32(number)?;
                    if class == 0 || class >= SLAB_CLASSES_MAX {
                        return None;
                    }
                    set[class as usize / 64] |= 1 << (class % 64);
                }
                Some(Classes::Set(set))
            }
        }
    }

    /// One class; none if it cannot exist.
    pub const fn only(class: u32) -> Self {
        let mut set = [0; SLAB_CLASSES_MAX as usize / 64];
        if class < SLAB_CLASSES_MAX {
            set[class as usize / 64] = 1 << (class % 64);
        }
        Classes::Set(set)
    }

    /// Whether items of `class` are requested.
    pub fn include(self, class: u8) -> bool {
        match self {
            Classes::All | Classes::Hash => true,
            Classes::Set(set) => set[class as usize / 64] >> (class % 64) & 1 == 1,
        }
    }
}

/// The outcome of a [`AdminCommand`] that is not answered with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAnswer {
    /// Done.
    Done,
    /// `stats reset`: counters are zero again.
    StatsReset,
    /// Statistics or log streams of that name do not exist.
    Unknown,
    /// `stats detail` with an unknown argument.
    DetailUsage,
    /// `stats detail` where keys may not be listed.
    DetailNotAllowed,
    /// `stats cachedump` where keys may not be listed.
    CacheDumpNotAllowed,
    /// flush_all where it is disabled.
    FlushNotAllowed,
    /// shutdown where it is not enabled.
    ShutdownNotEnabled,
    /// shutdown with an unknown mode.
    ShutdownModeUnknown,
    /// The memory limit cannot be set to this value.
    MemoryLimitUnreachable,
    /// A slab class that does not exist.
    BadClass,
    /// Page reassignment: a class that does not exist.
    ReassignBadClass,
    /// Page reassignment: one is in progress.
    ReassignBusy,
    /// Page reassignment: the class has no spare page.
    ReassignNoSpare,
    /// Page reassignment: from a class to itself.
    ReassignSame,
    /// The crawler is already running.
    CrawlerNotStarted,
    /// The crawler is disabled.
    CrawlerDisabled,
    /// There are no items to crawl.
    CrawlerNothingToDo,
    /// A dump where keys may not be listed.
    DumpNotAllowed {
        /// `mgdump` rather than `metadump`.
        keys_only: bool,
    },
    /// A dump pipelined after unanswered requests.
    DumpPipelined {
        /// `mgdump` rather than `metadump`.
        keys_only: bool,
    },
    /// watch where it is disabled.
    WatchNotAllowed,
}
