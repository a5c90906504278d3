//! What lists show and leave out, and what the prunes remove.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use arctern_harness::host::Host;
use arctern_harness::skips::judge;

/// What a command that must fail has said.
fn refused(host: &Host, command: &[&str]) -> Result<String> {
    let output = host.attempt(command)?;
    ensure!(output.status.code() == Some(125), "{command:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn volumes_are_listed_and_pruned_as_asked() -> Result<(), String> {
    judge("lists::volumes", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        host.arctern(&["volume", "create", "--label", "for=test", "aa"])?;
        host.arctern(&["volume", "create", "bb"])?;
        host.arctern(&[
            "create",
            "--network",
            "none",
            "--name",
            "c",
            "-v",
            "bb:/b",
            "nginx",
            "true",
        ])?;
        let list = |more: &[&str]| host.arctern(&[&["volume", "ls"], more].concat());
        ensure!(
            list(&["--format", "{{.Name}} {{.Driver}} {{.MountCount}}"])?
                == "aa local 0\nbb local 1"
        );
        ensure!(list(&["--noheading"])? == "local  aa\nlocal  bb  c", "{}", list(&["-n"])?);
        ensure!(list(&["--format", "json"])? == list(&["--json"])?);
        for (filter, found) in [
            ("dangling=true", "aa"),
            ("dangling=false", "bb"),
            ("label=for", "aa"),
            ("name=b", "bb"),
            ("until=1h", ""),
        ] {
            let names = list(&["-q", "--filter", filter])?;
            ensure!(names == found, "{filter} finds {names}");
        }
        let said = refused(&host, &["volume", "ls", "--format", "{{.Size}}"])?;
        ensure!(said.contains("there is no field `Size`; the fields are Anonymous"), "{said}");
        let place = host.arctern(&["volume", "inspect", "--format", "{{.Mountpoint}}", "aa"])?;
        ensure!(std::path::Path::new(&place).is_dir(), "{place}");

        // Files of theirs are gone for good: it is asked first, and no answer is no.
        host.arctern(&["volume", "prune"])?;
        ensure!(list(&["-q"])? == "aa\nbb", "{}", list(&["-q"])?);
        host.arctern(&["volume", "prune", "--force", "--filter", "label=other"])?;
        ensure!(list(&["-q"])? == "aa\nbb", "{}", list(&["-q"])?);
        ensure!(
            host.arctern(&["volume", "prune", "--force", "--filter", "label=for=test"])? == "aa"
        );
        host.arctern(&["rm", "c"])?;
        ensure!(host.arctern(&["volume", "prune", "-f"])? == "bb");
        Ok(())
    })
}

#[test]
fn networks_are_listed_and_pruned_as_asked() -> Result<(), String> {
    judge("lists::networks", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        host.arctern(&["network", "create", "--label", "for=test", "aa"])?;
        host.arctern(&["network", "create", "bb"])?;
        host.arctern(&["create", "--network", "bb", "--name", "c", "nginx", "true"])?;
        let list = |more: &[&str]| host.arctern(&[&["network", "ls"], more].concat());
        let drivers = list(&["--format", "{{.Name}} {{.Driver}}"])?;
        ensure!(lines(&drivers) == ["aa bridge", "bb bridge", "podman bridge"], "{drivers}");
        ensure!(list(&["--format", "json"])? == list(&["--json"])?);
        ensure!(list(&["-q", "-f", "dangling=true"])? == "aa");
        ensure!(list(&["-q", "-f", "driver=macvlan"])?.is_empty());
        let whole = list(&["--no-trunc", "--format", "{{.ID}}", "--filter", "name=aa"])?;
        ensure!(whole.len() == 64, "{whole}");
        let subnets =
            host.arctern(&["network", "inspect", "-f", "{{.Name}} {{.Subnets}}", "aa"])?;
        ensure!(subnets.starts_with("aa [") && subnets.contains("/"), "{subnets}");
        host.arctern(&["network", "prune"])?;
        ensure!(host.arctern(&["network", "prune", "--force", "--filter", "until=1h"])?.is_empty());
        ensure!(host.arctern(&["network", "prune", "--force"])? == "aa");
        host.arctern(&["rm", "c"])?;
        ensure!(host.arctern(&["network", "prune", "-f"])? == "bb");
        ensure!(list(&["-q"])? == "podman", "{}", list(&["-q"])?);
        Ok(())
    })
}

#[test]
fn images_are_listed_and_pruned_as_asked() -> Result<(), String> {
    judge("lists::images", || {
        let host = Host::new()?;
        host.image("nginx", &["LABEL for=test"])?;
        host.arctern(&["tag", "nginx", "registry.example/team/web:1"])?;
        let list = |more: &[&str]| host.arctern(&[&["images"], more].concat());
        let row = "{{.Repository}}:{{.Tag}}";
        ensure!(list(&["--format", row, "web"])? == "registry.example/team/web:1");
        ensure!(list(&["--format", row, "team/*:1"])? == "registry.example/team/web:1");
        ensure!(list(&["--noheading", "eb"])?.is_empty());
        let both = list(&["--sort", "repository", "--format", row])?;
        ensure!(both == "localhost/nginx:latest\nregistry.example/team/web:1", "{both}");
        ensure!(list(&["-n", "--digests", "nginx"])?.contains(" sha256:"));
        ensure!(lines(&list(&["-q", "--filter", "label=for=test"])?).len() == 1);
        ensure!(list(&["-q", "--filter", "label=for=other"])?.is_empty());
        ensure!(list(&["-q", "--filter", "dangling=true"])?.is_empty());
        let json = list(&["--format", "json"])?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(json[0]["Labels"]["for"] == "test" && json[0]["Dangling"] == false, "{json}");
        let id = host.arctern(&["image", "inspect", "--format", "{{.Id}}", "nginx"])?;
        ensure!(json[0]["Id"] == id, "{id}");
        let history = host.arctern(&["history", "--format", "{{.ID}}", "nginx"])?;
        ensure!(id.starts_with(history.lines().next().unwrap_or("-")), "{history}");
        host.arctern(&["image", "prune", "--all", "--force", "--filter", "label=for=other"])?;
        ensure!(lines(&list(&["-q"])?).len() == 1);
        ensure!(
            host.arctern(&["image", "prune", "--all", "--force", "--filter", "reference=web"])?
                == id
        );
        ensure!(list(&["-q"])?.is_empty());
        Ok(())
    })
}

#[test]
fn checkpoints_are_listed_as_asked() -> Result<(), String> {
    judge("lists::checkpoints", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        host.arctern(&["run", "-d", "--network", "none", "--name", "c", "nginx", "sleep", "1000"])?;
        host.arctern(&["checkpoint", "c"])?;
        let list = |more: &[&str]| host.arctern(&[&["checkpoint", "ls"], more].concat());
        ensure!(list(&["--format", "{{.Name}} {{.Status}}"])? == "c checkpointed");
        ensure!(list(&["-q"])? == "c" && list(&["--format", "json"])? == list(&["--json"])?);
        ensure!(list(&["-n"])?.lines().count() == 1);
        host.arctern(&["rm", "c"])?;
        Ok(())
    })
}
