//! A plain tar as a list of members, written without asking whether it makes sense.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

const BLOCK: usize = 512;
/// The member that lists the digests of all others.
pub const MANIFEST: &str = "arctern.json";

/// A member of an archive.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name, as it is in the header.
    pub name: Vec<u8>,
    /// The type in the header: `0` a file, `2` a symbolic link, ….
    pub kind: u8,
    /// Where it links to.
    pub link: Vec<u8>,
    /// The size in the header, where it is not that of the content.
    pub size: Option<u64>,
    /// What follows the header.
    pub content: Vec<u8>,
}

impl Member {
    /// A file.
    pub fn file(name: &str, content: &[u8]) -> Self {
        Self::of_kind(b'0', name, "", content)
    }

    /// Anything.
    pub fn of_kind(kind: u8, name: &str, link: &str, content: &[u8]) -> Self {
        Self { name: name.into(), kind, link: link.into(), size: None, content: content.to_vec() }
    }

    /// Its name as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut header = [0; BLOCK];
        let name = &self.name[..self.name.len().min(100)];
        header[..name.len()].copy_from_slice(name);
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(&number(self.size.unwrap_or(self.content.len() as u64)));
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = self.kind;
        let link = &self.link[..self.link.len().min(100)];
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        // Device numbers: those of the first disk.
        header[329..337].copy_from_slice(b"0000010\0");
        header[337..345].copy_from_slice(b"0000000\0");
        seal(&mut header);
        tar.extend(header);
        tar.extend(&self.content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
}

/// A size as the header has it: octal, or binary where that is too short.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field.copy_from_slice(format!("{value:011o}\0").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

/// Puts the right sum into a header.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Reads a plain tar.
pub fn read(mut tar: &[u8]) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    loop {
        ensure!(tar.len() >= BLOCK, "the tar has no end");
        let (header, rest) = tar.split_at(BLOCK);
        if header.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            field.split(|byte| *byte == 0).next().unwrap_or(field).to_vec()
        };
        let size = String::from_utf8_lossy(&text(124..136)).trim().to_owned();
        let size = usize::from_str_radix(&size, 8).context("a size")?;
        if rest.len() < size {
            bail!("the tar is cut off");
        }
        members.push(Member {
            name: text(0..100),
            kind: header[156],
            link: text(157..257),
            size: None,
            content: rest[..size].to_vec(),
        });
        tar = rest.get(size.next_multiple_of(BLOCK)..).context("the tar is cut off")?;
    }
}

/// Writes members and the end mark.
pub fn write(members: &[Member]) -> Vec<u8> {
    let mut tar = Vec::new();
    for member in members {
        member.write(&mut tar);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// Gives the manifest the digests and sizes of what is there now: a mutation is then found by
/// whoever reads the member, and not by its digest.
pub fn remake(members: &mut [Member]) -> Result<()> {
    let files: Vec<Value> = members
        .iter()
        .filter(|member| member.kind == b'0' && member.name != MANIFEST.as_bytes())
        .map(|member| {
            let digest = Sha256::digest(&member.content);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::json!({ "name": member.text(), "size": member.content.len(), "sha256": hex })
        })
        .collect();
    let manifest = members.iter_mut().find(|member| member.name == MANIFEST.as_bytes());
    let manifest = manifest.context("no manifest")?;
    let mut json: Value = serde_json::from_slice(&manifest.content)?;
    json["members"] = files.into();
    manifest.content = serde_json::to_vec(&json)?;
    Ok(())
}
