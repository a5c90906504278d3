//! A real sshd on a host of a test, with keys of its own.

use crate::engine::built;
use crate::host::{Host, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running sshd, and what a client needs to know of it.
pub struct Sshd {
    server: Child,
    directory: PathBuf,
    address: IpAddr,
    /// `--root`, `--runroot` of the host that it runs on.
    roots: [PathBuf; 2],
}

impl Sshd {
    /// Starts one that listens at an address of the host.
    pub fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let directory = host.dir().join("ssh");
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        // Where sshd's unprivileged half is confined; Debian makes it when the service starts.
        fs::create_dir_all("/run/sshd")?;
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        for key in ["host_key", "user_key"] {
            if !directory.join(key).exists() {
                let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", &path(key)];
                run(Command::new("ssh-keygen").args(arguments))?;
            }
        }
        fs::copy(path("user_key.pub"), path("authorized_keys"))?;
        let host_key = fs::read_to_string(path("host_key.pub"))?;
        fs::write(path("known_hosts"), format!("{address} {host_key}"))?;
        let config = [
            format!("ListenAddress {address}"),
            "Port 22".into(),
            format!("HostKey {}", path("host_key")),
            format!("AuthorizedKeysFile {}", path("authorized_keys")),
            "StrictModes no".into(),
            "UsePAM no".into(),
            "PermitRootLogin prohibit-password".into(),
            "PidFile none".into(),
        ];
        fs::write(path("sshd_config"), config.join("\n") + "\n")?;
        let mut server = host
            .enter("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &path("sshd_config")])
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run sshd")?;
        let mut words = BufReader::new(server.stderr.take().context("no output")?);
        let mut said = String::new();
        while !said.contains("Server listening") {
            let before = said.len();
            ensure!(words.read_line(&mut said)? > 0 && said.len() > before, "sshd: {said}");
        }
        // Whatever else it says is read, so that it never waits for us.
        std::thread::spawn(move || std::io::copy(&mut words, &mut std::io::sink()));
        let roots = [host.dir().join("root"), host.dir().join("run")];
        Ok(Self { server, directory, address, roots })
    }

    /// `ssh://…` of it.
    pub fn url(&self) -> String {
        format!("ssh://root@{}", self.address)
    }

    /// Options of `arctern migrate` by which its host is reached.
    pub fn options(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).to_string_lossy().into_owned();
        let mut list = Vec::new();
        for option in [
            format!("IdentityFile={}", file("user_key")),
            format!("UserKnownHostsFile={}", file("known_hosts")),
            "GlobalKnownHostsFile=/dev/null".into(),
            "BatchMode=yes".into(),
        ] {
            list.extend(["-o".to_owned(), option]);
        }
        let [root, runroot] = &self.roots;
        for (option, path) in [
            ("--remote-program", &built("ARCTERN", "arctern")),
            ("--remote-root", root),
            ("--remote-runroot", runroot),
        ] {
            list.extend([option.to_owned(), path.to_string_lossy().into_owned()]);
        }
        list
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
