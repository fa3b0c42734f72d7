//! Finds the process that listens at a local address, so that its CPU time can be measured.

use std::fs;

use socket2::SockAddr;

/// The process that listens at `address`, if it runs here and `/proc` shows its files.
pub fn pid_of(address: &SockAddr) -> Option<u32> {
    let inode = match (address.as_socket(), address.as_pathname()) {
        (Some(address), _) if address.ip().is_loopback() => {
            let port = address.port();
            ["/proc/net/tcp", "/proc/net/tcp6"]
                .into_iter()
                .find_map(|table| tcp_inode(&fs::read_to_string(table).ok()?, port))?
        }
        (None, Some(path)) => {
            let path = fs::canonicalize(path).ok()?;
            unix_inode(&fs::read_to_string("/proc/net/unix").ok()?, path.to_str()?)?
        }
        _ => return None,
    };
    let target = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == &*target))
    })
}

/// The inode of the socket that listens on `port`: state 0A, local port in hexadecimal.
fn tcp_inode(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local_port, 16).ok()? == port;
        if listens { fields.get(9)?.parse().ok() } else { None }
    })
}

/// The inode of the socket that listens at `path`: the flag 00010000 marks listeners.
fn unix_inode(table: &str, path: &str) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = fields.get(3) == Some(&"00010000") && fields.get(7) == Some(&path);
        if listens { fields.get(6)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_behind_its_listeners() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = SockAddr::from(tcp.local_addr().unwrap());
        assert_eq!(pid_of(&address), Some(std::process::id()));
        drop(tcp);
        assert_eq!(pid_of(&address), None);

        let path = std::env::temp_dir().join(format!("ringload-listener-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(pid_of(&SockAddr::unix(&path).unwrap()), Some(std::process::id()));
        drop(unix);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_connection_to_the_port_is_not_a_listener() {
        let table = "header\n\
            0: 0100007F:2BCB 0100007F:9999 01 0:0 0:0 0 0 0 111 1\n\
            1: 0100007F:2BCB 00000000:0000 0A 0:0 0:0 0 0 0 222 1\n";
        assert_eq!(tcp_inode(table, 0x2BCB), Some(222));
        assert_eq!(tcp_inode(table, 1), None);
    }
}
