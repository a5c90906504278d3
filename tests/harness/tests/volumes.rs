//! Volumes of containers: kept, filled, shared, removed, and carried by checkpoints.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use arctern_harness::host::Host;
use arctern_harness::skips::judge;

/// Runs a shell in a new container that ends with it.
fn shell(host: &Host, mounts: &[&str], script: &str) -> Result<String> {
    let command = ["nginx", "sh", "-c", script];
    host.arctern(&[&["run", "--rm", "--network", "none"], mounts, &command].concat())
}

#[test]
fn volumes_outlive_their_containers() -> Result<(), String> {
    judge("volumes::life", || {
        let host = Host::new()?;
        host.image("nginx", &["VOLUME /var/cache/kept"])?;
        host.arctern(&["volume", "create", "--label", "a=b", "data"])?;
        ensure!(!host.attempt(&["volume", "create", "data"])?.status.success(), "made twice");
        host.arctern(&["volume", "create", "--ignore", "data"])?;

        // What the image has at the place comes in once, with owner and mode, and never again.
        let seen = shell(
            &host,
            &["-v", "data:/var/www"],
            "ls /var/www; rm -r /var/www/*; echo x > /var/www/y",
        )?;
        ensure!(seen == "html", "the volume has {seen}");
        let seen = shell(
            &host,
            &["--mount", "type=volume,src=data,dst=/var/www,ro"],
            "ls /var/www; touch /var/www/z 2>/dev/null || echo read-only",
        )?;
        ensure!(seen == "y\nread-only", "the volume has {seen}");
        let seen = shell(&host, &["-v", "empty:/var/www:nocopy"], "ls /var/www | wc -l")?;
        ensure!(seen == "0", "the volume has {seen} files");

        // Anonymous ones, the image's among them, go with `run --rm` and `rm -v`.
        let names = || host.arctern(&["volume", "ls", "-q"]);
        ensure!(names()? == "data\nempty", "the volumes are {}", names()?);
        host.arctern(&[
            "create", "--name", "one", "-v", "/other", "-v", "data:/d", "nginx", "true",
        ])?;
        ensure!(names()?.lines().count() == 4, "the volumes are {}", names()?);
        let refused = host.attempt(&["volume", "rm", "data"])?;
        ensure!(String::from_utf8_lossy(&refused.stderr).contains("belongs to one"), "{refused:?}");
        host.arctern(&["rm", "-v", "one"])?;
        ensure!(names()? == "data\nempty", "the volumes are {}", names()?);

        // In and out as a tar.
        let tar = host.dir().join("data.tar").to_string_lossy().into_owned();
        host.arctern(&["volume", "export", "data", "-o", &tar])?;
        host.arctern(&["volume", "create", "copy"])?;
        host.arctern(&["volume", "import", "copy", &tar])?;
        let seen = shell(&host, &["-v", "copy:/d"], "cat /d/y")?;
        ensure!(seen == "x", "the copy has {seen}");

        ensure!(host.attempt(&["volume", "exists", "none"])?.status.code() == Some(1), "exists");
        let about = host.arctern(&["volume", "inspect", "data"])?;
        ensure!(about.contains("\"a\": \"b\""), "{about}");
        let twice = ["run", "--rm", "-v", "data:/d", "--tmpfs", "/d", "nginx", "true"];
        ensure!(!host.attempt(&twice)?.status.success(), "two mounts at one place");
        host.arctern(&["volume", "prune", "--force"])?;
        ensure!(names()?.is_empty(), "the volumes are {}", names()?);
        Ok(())
    })
}

#[test]
fn checkpoints_carry_volumes() -> Result<(), String> {
    judge("volumes::checkpoint", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        let file = host.dir().join("a.tar").to_string_lossy().into_owned();
        let script = "dd if=/dev/urandom of=/data/large bs=1M count=3 2>/dev/null; cd /data; \
                      ln large same; truncate -s 64M holes; chown 7:8 holes; chmod 4711 holes; \
                      echo $(sha256sum < large) > sum; i=0; while :; do i=$((i+1)); \
                      echo $i > n; mv n now; done";
        let run =
            ["run", "-d", "--name", "a", "--network", "none", "-v", "data:/data", "-v", "/more"];
        host.arctern(&[&run[..], &["nginx", "sh", "-c", script]].concat())?;
        let wait = "until test -e /data/now; do sleep 0.05; done; echo kept > /more/file";
        host.arctern(&["exec", "a", "sh", "-c", wait])?;
        host.arctern(&["container", "checkpoint", "--leave-running", "-e", &file, "a"])?;

        // A volume of that name belongs to somebody: to the container that goes on.
        let again = ["container", "restore", "-i", &file, "-n", "b"];
        let refused = host.attempt(&again)?;
        ensure!(
            String::from_utf8_lossy(&refused.stderr).contains("exist already: data"),
            "{refused:?}"
        );
        ensure!(
            host.arctern(&["volume", "ls", "-q"])?.lines().count() == 2,
            "the refusal left a volume"
        );

        host.arctern(&["rm", "-f", "-v", "-t", "0", "a"])?;
        host.arctern(&["volume", "rm", "data"])?;
        host.arctern(&again)?;
        let check = "cd /data; test \"$(cat sum)\" = \"$(echo $(sha256sum < large))\" && \
                     stat -c '%h %u:%g %a %s' large holes && test $(stat -c %b holes) -lt 100 && \
                     cat /more/file";
        let seen = host.arctern(&["exec", "b", "sh", "-c", check])?;
        ensure!(seen == "2 0:0 644 3145728\n1 7:8 4711 67108864\nkept", "the volume has {seen}");
        let now = |name: &str| host.arctern(&["exec", name, "cat", "/data/now"]);
        let (before, after) = (now("b")?, now("b")?);
        ensure!(before.parse::<u64>()? <= after.parse::<u64>()?, "{before} {after}");

        // Left out, what is there is used as it is.
        host.arctern(&["container", "checkpoint", "--ignore-volumes", "-e", &file, "b"])?;
        host.arctern(&["rm", "-v", "b"])?;
        let refused = host.attempt(&["container", "restore", "-i", &file, "-n", "c"])?;
        ensure!(!refused.status.success(), "a volume without contents was restored");
        host.arctern(&["container", "restore", "-i", &file, "-n", "c", "--ignore-volumes"])?;
        ensure!(now("c")?.parse::<u64>()? >= after.parse::<u64>()?, "the volume is another");
        host.arctern(&["rm", "-f", "-v", "-t", "0", "c"])?;
        host.arctern(&["volume", "rm", "data"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}
