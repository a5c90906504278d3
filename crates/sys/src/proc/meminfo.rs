//! `/proc/meminfo`: the memory of the machine.

use std::io;

use super::ParseError;

/// What we use of it. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemInfo {
    /// What programs can take without anything being swapped out, by the kernel's estimate.
    pub available: u64,
    /// Free space for swapping.
    pub swap_free: u64,
}

impl MemInfo {
    /// All that programs can take.
    pub fn room(&self) -> u64 {
        self.available.saturating_add(self.swap_free)
    }
}

/// Parses the file.
pub fn parse(text: &str) -> Result<MemInfo, ParseError> {
    let field = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.map(|kib| kib.saturating_mul(1024))
            .ok_or_else(|| ParseError::new("a size of memory", key))
    };
    Ok(MemInfo { available: field("MemAvailable:")?, swap_free: field("SwapFree:")? })
}

/// Reads the file.
pub fn read() -> io::Result<MemInfo> {
    Ok(parse(&std::fs::read_to_string("/proc/meminfo")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let text = "MemTotal:       24683520 kB\nMemFree:        20000000 kB\n\
                    MemAvailable:         12 kB\nSwapCached:            7 kB\nSwapFree:    3 kB\n";
        let info = parse(text).unwrap();
        assert_eq!(info, MemInfo { available: 12 << 10, swap_free: 3 << 10 });
        assert_eq!(info.room(), 15 << 10);
        assert!(parse("MemTotal: 1 kB\n").is_err());
        assert!(read().unwrap().available > 0);
    }
}
