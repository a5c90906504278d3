//! Ethernet hardware addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A hardware address of six bytes, as text `xx:xx:xx:xx:xx:xx`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// The text is no hardware address that an interface can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no unicast hardware address of the form xx:xx:xx:xx:xx:xx")]
pub struct BadMac(pub String);

impl Mac {
    /// The address of a container's interface when none is asked for: always the same for the same
    /// container and address, locally administered.
    pub fn of_container(container: &str, ip: Ipv4Addr) -> Self {
        let digest = Sha256::new().chain_update(container).chain_update(ip.octets()).finalize();
        Mac([0x02, digest[0], digest[1], digest[2], digest[3], digest[4]])
    }

    /// The address of a bridge: a function of its IP address only, so that a container that moves
    /// to another host with the same subnet finds its gateway under the address it has cached.
    pub fn of_gateway(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Mac([0x02, 0x61, a, b, c, d])
    }

    /// The address of a bridge's port. A bridge that was given no address has the lowest of its ports',
    /// and changes it when that one comes or goes: neighbours do not find the host for a minute then.
    /// So ours are higher than any that devices have, and than nearly all that the kernel draws for
    /// virtual ones: these begin with 0xfe once in 64 times.
    pub fn of_port(name: &str) -> Self {
        let digest = Sha256::digest(name);
        Mac([0xfe, 0xff, digest[0], digest[1], digest[2], digest[3]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        // Multicast addresses (lowest bit) and zero cannot be given to an interface.
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(bad());
        }
        Ok(Mac(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_refusals() {
        let mac: Mac = "02:42:0a:58:00:05".parse().expect("valid");
        assert_eq!(mac.to_string(), "02:42:0a:58:00:05");
        for bad in [
            "",
            "02:42",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:42:0a:58:00:05:06",
            "+2:42:0a:58:00:05",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
