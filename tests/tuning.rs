//! The host tool (`tuning/tune`) on hosts made of files, and, without changing it, on this one.
//!
//! The tool puts `TUNE_ROOT` before every path, so a directory with the right files is a host. Each
//! test makes its own and compares all of its values before and after.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const STATE: &str = "var/lib/ringlane/tuning.state";

/// What a host of two nodes of memory and a NIC of two queues has; every concern finds something.
const HOST: [(&str, &str); 42] = [
    ("proc/sys/kernel/random/boot_id", "first"),
    ("proc/sys/kernel/osrelease", "6.6.1"),
    ("proc/sys/kernel/numa_balancing", "1"),
    ("proc/sys/kernel/io_uring_disabled", "2"),
    ("proc/sys/kernel/io_uring_group", "-1"),
    ("proc/sys/vm/zone_reclaim_mode", "0"),
    ("proc/sys/fs/nr_open", "1048576"),
    ("proc/sys/fs/file-max", "9223372036854775807"),
    ("proc/sys/net/core/somaxconn", "128"),
    ("proc/sys/net/core/busy_read", "0"),
    ("proc/sys/net/core/busy_poll", "0"),
    ("proc/sys/net/core/rps_sock_flow_entries", "0"),
    ("proc/sys/net/core/netdev_max_backlog", "1000"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "128"),
    ("proc/net/netstat", "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 0 17"),
    ("proc/net/softnet_stat", "00000a 00000002 0\n00000b 0000000f 0"),
    ("proc/net/tcp", "sl local rem st\n0: 00000000:2BCB 00000000:0000 0A 0"),
    ("proc/cmdline", "root=/dev/sda1 quiet"),
    ("proc/meminfo", "MemTotal: 1 kB\nHugePages_Total: 12"),
    ("proc/self/limits", "Max open files 1024 4096 files\nMax locked memory 65536 65536 bytes"),
    ("proc/77/comm", "irqbalance"),
    ("proc/irq/40/smp_affinity_list", "0-3"),
    ("proc/irq/41/smp_affinity_list", "0-3"),
    ("proc/irq/42/smp_affinity_list", "0-3"),
    ("sys/kernel/irq/40/actions", "eth0-config"),
    ("sys/kernel/irq/41/actions", "eth0-TxRx-0"),
    ("sys/kernel/irq/42/actions", "eth0-TxRx-1"),
    ("sys/class/net/eth0/operstate", "up"),
    ("sys/class/net/eth0/device/numa_node", "1"),
    ("sys/class/net/eth0/device/msi_irqs/40", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/42", "msix"),
    ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "0"),
    ("sys/class/net/eth0/queues/rx-1/rps_flow_cnt", "0"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "00000000,00000000"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "00000000,00000000"),
    ("sys/class/net/eth0/queues/tx-0/xps_cpus", "00000000,0000000f"),
    ("sys/class/net/eth0/queues/tx-1/xps_cpus", "00000000,0000000f"),
    ("sys/class/net/lo/operstate", "unknown"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
    ("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never"),
    ("etc/group", "root:x:0:\nringlane:x:321:"),
];

/// A host made of files, with a directory of its own.
struct Host {
    root: PathBuf,
}

impl Host {
    fn new(name: &str) -> Self {
        let host = Self::bare(name);
        for (path, value) in HOST {
            host.write(path, value);
        }
        host.write("sys/devices/system/cpu/online", "0-3");
        host.write("sys/devices/system/cpu/isolated", "");
        host.write("sys/devices/system/node/online", "0-1");
        host.write("sys/devices/system/node/node0/cpulist", "0-1");
        host.write("sys/devices/system/node/node1/cpulist", "2-3");
        for cpu in 0..4 {
            let cpu = format!("sys/devices/system/cpu/cpu{cpu}");
            host.write(&format!("{cpu}/cpufreq/scaling_governor"), "powersave");
            host.write(&format!("{cpu}/cpufreq/scaling_driver"), "intel_pstate");
            let governors = "performance powersave";
            host.write(&format!("{cpu}/cpufreq/scaling_available_governors"), governors);
            host.write(&format!("{cpu}/cpuidle/state0/name"), "POLL");
            host.write(&format!("{cpu}/cpuidle/state0/latency"), "0");
            host.write(&format!("{cpu}/cpuidle/state1/name"), "C6");
            host.write(&format!("{cpu}/cpuidle/state1/latency"), "133");
            host.write(&format!("{cpu}/power/pm_qos_resume_latency_us"), "0");
        }
        host
    }

    /// A host that has nothing at all.
    fn bare(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tuning").join(name);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).expect("the scratch directory is writable");
        Self { root }
    }

    fn write(&self, path: &str, value: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
        fs::write(path, format!("{value}\n")).expect("a file of the host");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).expect("a file of the host").trim().into()
    }

    /// Every value, apart from the state file. Of a choice the chosen one: that is what a kernel
    /// would show in brackets again.
    fn values(&self) -> BTreeMap<PathBuf, String> {
        let mut values = BTreeMap::new();
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("a directory").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if !path.ends_with(STATE) {
                    let text = fs::read_to_string(&path).expect("a file of the host");
                    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
                    let value = chosen.map_or(text.as_str(), |(chosen, _)| chosen);
                    values.insert(path, value.trim().to_owned());
                }
            }
        }
        values
    }

    fn has_state(&self) -> bool {
        self.root.join(STATE).exists()
    }

    fn tune(&self, arguments: &str) -> Told {
        let output =
            tool().env("TUNE_ROOT", &self.root).args(arguments.split_whitespace()).output();
        Told::new(arguments, output.expect("bash starts"))
    }

    /// What would be changed, as paths from the root of the host.
    fn wishes(&self, arguments: &str) -> Vec<String> {
        let told = self.tune(arguments);
        let wish = |line: &str| line.strip_prefix("change   ").map(str::to_owned);
        told.out.lines().filter_map(wish).collect()
    }
}

/// What a run of the tool said and how it ended.
struct Told {
    out: String,
    error: String,
    code: i32,
}

impl Told {
    fn new(arguments: &str, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("messages in UTF-8");
        let (out, error) = (text(output.stdout), text(output.stderr));
        let code = output.status.code().unwrap_or_else(|| panic!("tune {arguments} was killed"));
        for leak in ["line ", "unbound", "command not found", "syntax"] {
            assert!(!error.contains(leak), "tune {arguments}: {error}");
        }
        Self { out, error, code }
    }

    #[track_caller]
    fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.error);
        self
    }

    #[track_caller]
    fn says(self, part: &str) -> Self {
        assert!(
            self.out.contains(part) || self.error.contains(part),
            "no {part:?} in\n{}",
            self.out
        );
        self
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning")
}

fn tool() -> Command {
    let mut command = Command::new(directory().join("tune"));
    command.env_remove("TUNE_ROOT");
    command
}

fn concerns() -> Vec<String> {
    let output = tool().arg("list").output().expect("bash starts");
    let told = Told::new("list", output).ends(0);
    told.out.lines().map(str::to_owned).collect()
}

#[test]
fn check_says_what_and_why_and_changes_nothing() {
    let host = Host::new("check");
    let before = host.values();
    let told = host.tune("").ends(1);
    assert_eq!(host.values(), before);
    assert!(!host.has_state());
    assert_eq!(told.error, "");
    let lines: Vec<&str> = told.out.lines().collect();
    let first_changes =
        lines.windows(3).filter(|l| l[0].starts_with("why") && l[1].starts_with("effect"));
    assert!(first_changes.clone().count() >= 8, "{}", told.out);
    assert!(first_changes.clone().all(|l| l[2].starts_with("change   /")), "{}", told.out);
    // A change belongs to the reason above it: none stands before the first reason of a concern.
    for section in told.out.split("\n== ").skip(1) {
        let change = section.find("\nchange ");
        assert!(change.is_none() || section.find("\nwhy ") < change, "{section}");
    }
    for concern in concerns() {
        assert!(told.out.contains(&format!("== {concern}: ")), "{concern} is silent");
    }
}

#[test]
fn apply_does_what_check_announced_and_revert_restores_every_value() {
    let host = Host::new("apply");
    let before = host.values();
    let wishes = host.wishes("check");
    assert!(wishes.len() > 20, "{wishes:?}");
    host.tune("apply").ends(0);
    for wish in &wishes {
        let (path, values) = wish.split_once(": ").expect("a path and its values");
        let (_, wanted) = values.split_once(" -> ").expect("two values");
        assert_eq!(host.read(path.trim_start_matches('/')), wanted, "{path}");
    }
    assert_eq!(host.wishes("check"), [""; 0]);
    host.tune("check").ends(0);
    let changed = host.values();
    let differing = before.iter().filter(|&(path, value)| changed[path] != *value).count();
    assert_eq!(differing, wishes.len(), "something was changed that check did not name");

    host.tune("revert").ends(0);
    assert_eq!(host.values(), before);
    assert!(!host.has_state());
    host.tune("revert").ends(0).says("Nothing to revert");
}

#[test]
fn a_dry_run_changes_nothing_in_either_direction() {
    let host = Host::new("dry-run");
    let before = host.values();
    host.tune("apply --dry-run").ends(1).says("change ");
    assert_eq!(host.values(), before);
    assert!(!host.has_state());
    host.tune("apply").ends(0);
    let applied = host.values();
    let state = host.read(STATE);
    host.tune("revert --dry-run").ends(1).says("restore ");
    assert_eq!(host.values(), applied);
    assert_eq!(host.read(STATE), state);
}

#[test]
fn the_first_value_is_what_revert_restores_however_often_apply_ran() {
    let host = Host::new("repeated");
    let before = host.values();
    host.tune("apply").ends(0);
    let state = host.read(STATE);
    host.tune("apply").ends(0);
    assert_eq!(host.read(STATE), state, "a repeated apply records nothing new");
    host.tune("apply --backlog 9000 --cpus 1 --resume-us 5").ends(0);
    assert_eq!(host.read("proc/sys/net/core/somaxconn"), "9000");
    host.tune("apply --irq-cpus 3 irq").ends(0);
    assert_eq!(host.read("proc/irq/41/smp_affinity_list"), "3");
    host.tune("revert").ends(0);
    assert_eq!(host.values(), before);
}

#[test]
fn one_concern_may_be_applied_and_reverted_alone() {
    let host = Host::new("one-concern");
    let before = host.values();
    host.tune("apply backlog numa").ends(0);
    assert_eq!(host.read("proc/sys/net/core/somaxconn"), "4096");
    assert_eq!(host.read("proc/sys/kernel/numa_balancing"), "0");
    assert_eq!(host.read("proc/irq/41/smp_affinity_list"), "0-3");
    host.tune("revert numa").ends(0);
    assert_eq!(host.read("proc/sys/kernel/numa_balancing"), "1");
    assert_eq!(host.read("proc/sys/net/core/somaxconn"), "4096");
    host.tune("revert").ends(0);
    assert_eq!(host.values(), before);
    assert!(!host.has_state());
}

/// A setting that even root cannot write, with a value that will not do.
fn unwritable(host: &Host, path: &str) {
    let path = host.root.join(path);
    fs::remove_file(&path).expect("it was there");
    symlink("/proc/sys/kernel/cap_last_cap", path).expect("a link");
}

#[test]
fn what_cannot_be_written_is_skipped_and_the_rest_is_done() {
    let host = Host::new("unwritable");
    unwritable(&host, "proc/sys/net/core/somaxconn");
    let before = host.values();
    host.tune("apply").ends(0).says("skipped: /proc/sys/net/core/somaxconn: Permission denied");
    assert!(!host.read(STATE).contains("somaxconn"), "what was not changed is not recorded");
    assert_eq!(host.read("proc/sys/net/ipv4/tcp_max_syn_backlog"), "4096");
    host.tune("revert").ends(0);
    assert_eq!(host.values(), before);
}

#[test]
fn what_became_unwritable_stays_recorded_until_it_can_be_restored() {
    let host = Host::new("became-unwritable");
    host.tune("apply backlog").ends(0);
    let state = host.read(STATE).replace("|128|4096", "|128|40");
    host.write(STATE, &state);
    unwritable(&host, "proc/sys/net/core/somaxconn");
    host.write("proc/sys/net/ipv4/tcp_max_syn_backlog", "40");
    host.tune("revert").ends(1).says("skipped: /proc/sys/net/core/somaxconn: Permission denied");
    assert_eq!(host.read("proc/sys/net/ipv4/tcp_max_syn_backlog"), "128");
    let left = host.read(STATE);
    assert!(left.contains("somaxconn") && !left.contains("syn_backlog"), "{left}");
    fs::remove_file(host.root.join("proc/sys/net/core/somaxconn")).expect("the link");
    host.write("proc/sys/net/core/somaxconn", "40");
    host.tune("revert").ends(0);
    assert_eq!(host.read("proc/sys/net/core/somaxconn"), "128");
}

#[test]
fn a_host_without_any_of_it_is_no_error() {
    let host = Host::bare("bare");
    host.tune("check").ends(0).says("skipped: /proc/sys/net/core/somaxconn: not on this host");
    let options = "--cpus 0-1 --nic eth9 --busy-poll 50 --uring-group 7";
    host.tune(&format!("apply {options}")).ends(0);
    assert_eq!(host.values(), BTreeMap::new(), "a missing setting is not created");
    assert!(!host.has_state());
}

#[test]
fn a_setting_that_is_gone_is_forgotten() {
    let host = Host::new("gone");
    host.tune("apply irq numa").ends(0);
    fs::remove_file(host.root.join("proc/irq/42/smp_affinity_list")).expect("it was there");
    host.tune("revert").ends(0).says("gone     /proc/irq/42/smp_affinity_list");
    assert_eq!(host.read("proc/irq/41/smp_affinity_list"), "0-3");
    assert!(!host.has_state());
}

#[test]
fn an_apply_that_died_before_writing_is_undone_too() {
    let host = Host::new("died");
    let before = host.values();
    host.write(
        STATE,
        "boot|first\nset|backlog|/proc/sys/net/core/somaxconn|128|4096\n\
         set|numa|/proc/sys/kernel/numa_balancing|1|0",
    );
    host.write("proc/sys/kernel/numa_balancing", "0");
    host.tune("revert").ends(0).says("fine     /proc/sys/net/core/somaxconn = 128");
    assert_eq!(host.values(), before);
    assert!(!host.has_state());
}

#[test]
fn what_someone_else_changed_since_is_left_unless_forced() {
    let host = Host::new("someone-else");
    host.tune("apply backlog").ends(0);
    host.write("proc/sys/net/core/somaxconn", "8192");
    host.tune("revert").ends(1).says("from 4096 to 8192");
    assert_eq!(host.read("proc/sys/net/core/somaxconn"), "8192");
    assert_eq!(host.read("proc/sys/net/ipv4/tcp_max_syn_backlog"), "128");
    host.tune("revert --force").ends(0);
    assert_eq!(host.read("proc/sys/net/core/somaxconn"), "128");
    assert!(!host.has_state());
}

#[test]
fn a_restart_of_the_host_voids_the_state() {
    let host = Host::new("restart");
    host.tune("apply").ends(0);
    let after_restart = Host::new("restart");
    after_restart.write("proc/sys/kernel/random/boot_id", "second");
    let before = after_restart.values();
    // The settings are back by themselves; only the state file has survived.
    after_restart.write(STATE, "boot|first\nset|backlog|/proc/sys/net/core/somaxconn|5|4096");
    after_restart.tune("revert").ends(0).says("rebooted");
    assert_eq!(after_restart.values(), before);
    assert!(!after_restart.has_state());
    after_restart.write(STATE, "boot|first\nset|backlog|/proc/sys/net/core/somaxconn|5|4096");
    after_restart.tune("apply").ends(0).says("starting afresh");
    after_restart.tune("revert").ends(0);
    assert_eq!(after_restart.values(), before, "5 was the value of another life");
}

#[test]
fn without_a_state_file_nothing_is_changed() {
    let host = Host::new("no-state");
    host.write("var", "a file where a directory is needed");
    let before = host.values();
    host.tune("apply").ends(3).says("nothing was changed");
    assert_eq!(host.values(), before);
    // Without writing there is no need for one.
    host.tune("apply --dry-run").ends(1);
}

#[test]
fn a_state_that_names_other_files_is_not_followed() {
    let host = Host::new("foreign-state");
    host.write("etc/shadow", "now");
    host.write(
        STATE,
        "boot|first\nset|irq|/etc/shadow|before|now\nset|irq|/proc/../etc/shadow|before|now",
    );
    host.tune("revert --force").ends(1).says("not a kernel setting");
    assert_eq!(host.read("etc/shadow"), "now");
}

#[test]
fn queues_are_heard_by_the_cpus_of_the_list_in_order() {
    let host = Host::new("queues");
    host.tune("apply --cpus 3,1 irq steering").ends(0);
    assert_eq!(host.read("proc/irq/41/smp_affinity_list"), "3", "queue 0, first CPU of the list");
    assert_eq!(host.read("proc/irq/42/smp_affinity_list"), "1", "queue 1, second CPU");
    assert_eq!(host.read("proc/irq/40/smp_affinity_list"), "0-3", "no queue, not touched");
    assert_eq!(host.read("sys/class/net/eth0/queues/tx-0/xps_cpus"), "8");
    assert_eq!(host.read("sys/class/net/eth0/queues/tx-1/xps_cpus"), "2");
    let rps = host.read("sys/class/net/eth0/queues/rx-0/rps_cpus");
    assert_eq!(rps, "00000000,00000000", "a queue per core needs no RPS");
    host.tune("check irq").says("irqbalance runs");
}

#[test]
fn fewer_queues_than_cores_are_spread_in_software() {
    let host = Host::new("few-queues");
    host.write("sys/devices/system/cpu/online", "0-3,40");
    host.tune("apply --cpus 0-3,40 steering").ends(0);
    let rx = "sys/class/net/eth0/queues/rx-1";
    assert_eq!(host.read(&format!("{rx}/rps_cpus")), "100,0000000f");
    assert_eq!(host.read(&format!("{rx}/rps_flow_cnt")), "16384");
    assert_eq!(host.read("proc/sys/net/core/rps_sock_flow_entries"), "32768");
    assert_eq!(host.read("sys/class/net/eth0/queues/tx-0/xps_cpus"), "100,00000005");
    assert_eq!(host.read("sys/class/net/eth0/queues/tx-1/xps_cpus"), "a");
    // 2 + 15 drops are reason enough for a longer queue.
    assert_eq!(host.read("proc/sys/net/core/netdev_max_backlog"), "4000");
}

#[test]
fn a_virtio_nic_has_its_interrupts_from_the_device_above() {
    let host = Host::new("virtio");
    for (path, value) in [
        ("sys/devices/pci/3.0/msi_irqs/50", "msix"),
        ("sys/devices/pci/3.0/msi_irqs/51", "msix"),
        ("sys/kernel/irq/50/actions", "virtio2-config"),
        ("sys/kernel/irq/51/actions", "virtio2-input.0"),
        ("proc/irq/50/smp_affinity_list", "0-3"),
        ("proc/irq/51/smp_affinity_list", "0-3"),
        ("sys/devices/pci/3.0/virtio2/vendor", "0x1af4"),
        ("sys/bus/virtio/uevent", ""),
        ("sys/class/net/eth1/operstate", "up"),
    ] {
        host.write(path, value);
    }
    let link = |to: &str, from: &str| symlink(to, host.root.join(from)).expect("a link");
    link("../../../devices/pci/3.0/virtio2", "sys/class/net/eth1/device");
    link("../../../../bus/virtio", "sys/devices/pci/3.0/virtio2/subsystem");
    let wishes = host.wishes("check --nic eth1 --cpus 2 irq");
    assert_eq!(wishes, ["/proc/irq/51/smp_affinity_list: 0-3 -> 2"]);
}

#[test]
fn io_uring_is_opened_only_to_whom_the_administrator_names() {
    let host = Host::new("uring");
    host.tune("check uring").ends(0).says("allowed for no one").says("--uring-group");
    host.tune("apply uring").ends(0);
    assert_eq!(host.read("proc/sys/kernel/io_uring_disabled"), "2");
    host.tune("apply uring --uring-group strangers").ends(0).says("there is no group strangers");
    assert_eq!(host.read("proc/sys/kernel/io_uring_disabled"), "2");
    host.tune("apply uring --uring-group ringlane").ends(0);
    assert_eq!(host.read("proc/sys/kernel/io_uring_disabled"), "1");
    assert_eq!(host.read("proc/sys/kernel/io_uring_group"), "321");
    host.tune("revert").ends(0);
    assert_eq!(host.read("proc/sys/kernel/io_uring_disabled"), "2");
    assert_eq!(host.read("proc/sys/kernel/io_uring_group"), "-1");
    host.tune("apply uring --uring-group all").ends(0);
    assert_eq!(host.read("proc/sys/kernel/io_uring_disabled"), "0");
}

#[test]
fn values_that_are_better_than_wanted_are_left() {
    let host = Host::new("better");
    host.write("proc/sys/net/core/somaxconn", "65535");
    host.write("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never");
    host.write("sys/class/net/eth0/queues/tx-0/xps_cpus", "0,00000005");
    let wishes = host.wishes("check").join("\n");
    for left in ["somaxconn", "transparent_hugepage/enabled", "tx-0/xps_cpus", "file-max"] {
        assert!(!wishes.contains(left), "{left} in\n{wishes}");
    }
}

#[test]
fn facts_are_reported_as_the_host_has_them() {
    let host = Host::new("facts");
    host.tune("check backlog").says("17 connections found the queue full");
    host.tune("check reuseport").says("port 11211: 1 sockets");
    host.tune("check limits")
        .says("this shell: 1024 open files, 65536 bytes")
        .says("LimitMEMLOCK=");
    host.tune("check hugepages").says("12 huge pages are reserved");
    host.tune("check power").says("POLL:0 C6:133");
    host.tune("check numa --cpus 1-3").says("node 1 has CPUs 2-3").says("attached to node 1");
    host.tune("check isolation --cpus 2-3").says("isolcpus=managed_irq,domain,2-3 nohz_full=2-3");
    host.write("sys/devices/system/cpu/isolated", "2-3");
    host.write("sys/devices/system/cpu/nohz_full", "2-3");
    host.tune("check isolation --cpus 2-3").says("CPUs 2-3 are the node's alone");
    host.write("proc/sys/kernel/osrelease", "5.15.0");
    host.tune("check uring").says("too old");
}

#[test]
fn wrong_usage_is_refused_before_anything_happens() {
    let host = Host::new("usage");
    host.write("sys/class/net/eth0/operstate", "up");
    let before = host.values();
    for arguments in [
        "apply everything",
        "--fast",
        "apply --cpus",
        "apply --cpus 3-1",
        "apply --cpus 08",
        "apply --cpus 1;reboot",
        "apply --busy-poll fifty",
        "apply --backlog -1",
        "apply --state here",
        "apply --nic eth0,eth7",
        "check apply",
    ] {
        let told = host.tune(arguments).ends(2);
        assert!(told.error.starts_with("tune: ") && told.error.lines().count() == 1, "{arguments}");
    }
    assert_eq!(host.values(), before);
}

#[test]
fn every_concern_is_a_file_and_a_paragraph_of_the_manual() {
    let names = concerns();
    let mut files: Vec<String> = fs::read_dir(directory().join("concerns"))
        .expect("the concerns")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().replace(".sh", ""))
        .collect();
    files.sort();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(files, sorted);
    let help = Told::new("--help", tool().arg("--help").output().expect("bash starts")).ends(0);
    let manual = fs::read_to_string(directory().with_file_name("docs").join("tuning.md"));
    let manual = manual.expect("docs/tuning.md");
    for name in names {
        assert!(help.out.contains(&name), "--help does not name {name}");
        assert!(manual.contains(&format!("tuning/tune check {name}")), "the manual lacks {name}");
    }
    for option in help.out.split_whitespace().filter(|word| word.starts_with("--")) {
        let option = option.trim_matches(|c: char| !c.is_ascii_lowercase() && c != '-');
        assert!(manual.contains(option), "the manual lacks {option}");
    }
}

#[test]
fn the_scripts_pass_shellcheck() {
    let mut scripts = vec![directory().join("tune")];
    for part in ["lib", "concerns"] {
        let entries = fs::read_dir(directory().join(part)).expect("scripts").flatten();
        scripts.extend(entries.map(|entry| entry.path()));
    }
    match Command::new("shellcheck").arg("--external-sources").args(scripts).output() {
        Err(error) => println!("SKIPPED: no shellcheck ({error})"),
        Ok(output) => {
            let findings = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{findings}");
        }
    }
}

#[test]
fn this_host_is_looked_at_and_left_alone() {
    let watched = ["net/core/somaxconn", "net/core/rps_sock_flow_entries", "kernel/numa_balancing"]
        .map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).ok());
    for arguments in [&["check"][..], &["apply", "--dry-run", "--cpus", "0", "--busy-poll", "50"]] {
        let told = Told::new("on this host", tool().args(arguments).output().expect("bash starts"));
        assert!([0, 1].contains(&told.code), "{}{}", told.out, told.error);
        assert_eq!(told.error, "");
        assert!(told.out.contains("/proc/sys/net/core/somaxconn"), "{}", told.out);
    }
    let now = ["net/core/somaxconn", "net/core/rps_sock_flow_entries", "kernel/numa_balancing"]
        .map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).ok());
    assert_eq!(now, watched);
}

/// A real kernel's setting, in a network namespace of its own, which ends with the test whatever
/// happens: the host's value is another one.
#[test]
fn a_real_setting_is_applied_and_reverted() {
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tuning-real.state");
    let _ = fs::remove_file(&state);
    let script = r#"
        value() { cat /proc/sys/net/core/somaxconn; }
        before=$(value)
        "$1" apply backlog --backlog 54321 --state "$2" || exit 1
        echo "applied: $(value)"
        "$1" revert --state "$2" || exit 1
        [ "$(value)" = "$before" ] && echo restored
    "#;
    let host = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("every Linux has it");
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script, "sh"])
        .args([directory().join("tune"), state.clone()])
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED: no unshare ({error})"),
    };
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    if error.contains("unshare failed") {
        return println!("SKIPPED: no network namespace: {error}");
    }
    assert!(output.status.success(), "{out}{error}");
    assert!(out.contains("applied: 54321") && out.contains("restored"), "{out}{error}");
    assert!(!state.exists());
    let now = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("every Linux has it");
    assert_eq!(now, host, "the host's own value is out of reach of the namespace");
}
