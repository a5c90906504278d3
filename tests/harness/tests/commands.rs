//! Commands that people type daily, on containers whose programs say what reached them. Programs
//! tell that they run through a fifo in a directory of the host: nobody has to guess when.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::crash::shim;
use arctern_harness::host::{Host, run};
use arctern_harness::skips::judge;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A host with the image `nginx`, and a fifo that its containers find as `/share/fifo`.
struct Stage {
    host: Host,
    fifo: PathBuf,
    share: String,
}

impl Stage {
    fn new() -> Result<Self> {
        let host = Host::new()?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        let share = host.dir().join("share");
        fs::create_dir(&share)?;
        let fifo = share.join("fifo");
        run(Command::new("mkfifo").arg(&fifo))?;
        let share = format!("{}:/share", share.display());
        Ok(Stage { host, fifo, share })
    }

    /// What a container wrote to the fifo, once it has.
    fn hear(&self) -> Result<String> {
        let heard = run(Command::new("timeout").arg("60").arg("cat").arg(&self.fifo))?;
        Ok(String::from_utf8_lossy(&heard.stdout).trim().to_owned())
    }

    /// Starts a container with a shell script that has the fifo.
    fn script(&self, name: &str, options: &[&str], script: &str) -> Result<String> {
        let fixed = ["run", "-d", "--network", "none", "-v", &self.share, "--name", name];
        let command = ["nginx", "sh", "-c", script];
        self.host.arctern(&[&fixed[..], options, &command].concat())
    }

    fn field(&self, name: &str, field: &str) -> Result<String> {
        self.host.arctern(&["inspect", "--format", &format!("{{{{.{field}}}}}"), name])
    }
}

/// How a command failed: its exit code and what it said.
fn refusal(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_paused_container_stands_still_and_can_be_stopped() -> Result<(), String> {
    judge("commands::pause", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let script = "trap 'exit 7' TERM; echo up > /share/fifo; while :; do sleep 0.1; done";
        stage.script("still", &[], script)?;
        stage.hear()?;
        host.arctern(&["pause", "still"])?;
        let shown = host.arctern(&["ps", "--format", "{{.Names}} {{.State}} {{.Status}}"])?;
        ensure!(shown.contains("still paused") && shown.contains("(paused)"), "{shown}");
        ensure!(host.arctern(&["ps", "-q", "--filter", "status=paused"])?.len() == 12);
        for refused in
            [&["exec", "still", "true"][..], &["checkpoint", "still"], &["pause", "still"]]
        {
            let (code, said) = refusal(&host.attempt(refused)?);
            ensure!(code == Some(125) && said.contains("is paused"), "{refused:?}: {said}");
        }
        host.arctern(&["unpause", "--all"])?;
        host.arctern(&["exec", "still", "true"])?;
        host.arctern(&["pause", "still"])?;
        host.arctern(&["stop", "still"])?;
        let code = stage.field("still", "State.ExitCode")?;
        ensure!(code == "7", "a paused container took SIGTERM and ended with {code}");
        host.arctern(&["rm", "still"])?;
        Ok(())
    })
}

#[test]
fn a_policy_starts_a_container_again_until_it_is_stopped() -> Result<(), String> {
    judge("commands::policies", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        stage.script("fails", &["--restart", "on-failure:2"], "echo up > /share/fifo; exit 3")?;
        for _ in 0..3 {
            stage.hear()?;
        }
        host.arctern(&["wait", "fails", "--condition", "exited"])?;
        ensure!(stage.field("fails", "RestartCount")? == "2");
        host.arctern(&["rm", "fails"])?;

        let script = "echo up > /share/fifo; exec sleep infinity";
        stage.script("stays", &["--restart", "always"], script)?;
        for _ in 0..2 {
            stage.hear()?;
            run(Command::new("kill").args(["-9", &stage.field("stays", "State.Pid")?]))?;
        }
        stage.hear()?;
        let boots = ["ps", "-q", "--filter", "should-start-on-boot=true"];
        ensure!(host.arctern(&boots)?.len() == 12, "it is to start with the host");
        host.arctern(&["stop", "-t", "0", "stays"])?;
        ensure!(stage.field("stays", "State.Status")? == "exited");
        host.arctern(&["start", "--all", "--filter", "restart-policy=always"])?;
        stage.hear()?;
        // A restart by command is one start, not two.
        host.arctern(&["restart", "-t", "0", "stays"])?;
        stage.hear()?;
        ensure!(stage.field("stays", "RestartCount")? == "0");
        host.arctern(&["rm", "-f", "-t", "0", "stays"])?;

        // Between two starts nobody runs: its root is there as that of a stopped one.
        stage.script("ends", &["--restart", "always"], "echo up > /share/fifo; exit 1")?;
        for _ in 0..6 {
            stage.hear()?;
        }
        host.arctern(&["wait", "ends"])?;
        ensure!(!host.attempt(&["cp", "ends:/etc/passwd", "-"])?.stdout.is_empty(), "no copy");
        host.arctern(&["rm", "-f", "-t", "0", "ends"])?;
        let (code, said) =
            refusal(&host.attempt(&["create", "--rm", "--restart=always", "nginx"])?);
        ensure!(code == Some(125) && said.contains("choose one"), "{said}");
        Ok(())
    })
}

#[test]
fn a_policy_does_not_start_what_was_checkpointed() -> Result<(), String> {
    judge("commands::policy_checkpoint", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let script = "echo up > /share/fifo; exec sleep infinity";
        stage.script("stays", &["--restart", "always"], script)?;
        stage.hear()?;
        let shim = shim(host, "stays")?;
        host.arctern(&["checkpoint", "stays"])?;
        // From here on nobody is there who could.
        shim.gone(Duration::from_secs(60))?;
        ensure!(stage.field("stays", "State.Status")? == "checkpointed");
        let boots = ["ps", "-aq", "--filter", "should-start-on-boot=true"];
        ensure!(host.arctern(&boots)?.is_empty(), "its checkpoint would be lost at the next boot");
        host.arctern(&["restore", "stays"])?;
        ensure!(stage.field("stays", "State.Status")? == "running");
        // The policy holds for what was restored.
        run(Command::new("kill").args(["-9", &stage.field("stays", "State.Pid")?]))?;
        stage.hear()?;
        host.arctern(&["rm", "-f", "-t", "0", "stays"])?;
        Ok(())
    })
}

#[test]
fn a_container_with_rm_survives_its_restart() -> Result<(), String> {
    judge("commands::restart_rm", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        stage.script("once", &["--rm"], "echo up > /share/fifo; exec sleep infinity")?;
        stage.hear()?;
        host.arctern(&["restart", "-t", "0", "once"])?;
        stage.hear()?;
        host.arctern(&["stop", "-t", "0", "once"])?;
        let there = host.attempt(&["container", "exists", "once"])?;
        ensure!(there.status.code() == Some(1), "it goes with its end");
        Ok(())
    })
}

#[test]
fn checks_tell_a_containers_health() -> Result<(), String> {
    judge("commands::health", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let checks = ["--health-cmd", "test -e /well || { echo not well; exit 1; }"];
        let pace = ["--health-interval", "200ms", "--health-retries", "2"];
        stage.script("patient", &[&checks[..], &pace[..]].concat(), "sleep infinity")?;
        host.arctern(&["wait", "--condition", "unhealthy", "patient"])?;
        let shown = host.arctern(&["ps", "--filter", "health=unhealthy"])?;
        ensure!(shown.contains("(unhealthy)"), "{shown}");
        let log = stage.field("patient", "State.Health")?;
        ensure!(log.contains("not well"), "{log}");
        let checked = host.attempt(&["healthcheck", "run", "patient"])?;
        ensure!(checked.status.code() == Some(1), "{checked:?}");
        host.arctern(&["exec", "patient", "touch", "/well"])?;
        host.arctern(&["wait", "--condition", "healthy", "patient"])?;
        host.arctern(&["healthcheck", "run", "patient"])?;
        host.arctern(&["rm", "-f", "-t", "0", "patient"])?;
        Ok(())
    })
}

#[test]
fn options_reach_the_container_and_come_along() -> Result<(), String> {
    judge("commands::options", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let path = |name: &str| host.dir().join(name).to_string_lossy().into_owned();
        fs::write(path("env"), "# two\nONE=1\nTWO=a b\n")?;
        fs::write(path("labels"), "tier=front\n")?;
        let (env, labels, cid, pid) = (path("env"), path("labels"), path("cid"), path("pid"));
        let options = [
            "--init",
            "--env-file",
            &env,
            "-e",
            "ONE=one",
            "--label-file",
            &labels,
            "--annotation",
            "org.example=yes",
            "--cidfile",
            &cid,
            "--pidfile",
            &pid,
            "--add-host",
            "db:10.9.8.7",
            "--add-host",
            "up:host-gateway",
            "--dns",
            "192.0.2.53",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:2",
            "--device",
            "/dev/null:/dev/nil:rw",
            "--sysctl",
            "net.core.somaxconn=77",
            "--stop-timeout",
            "3",
            "--stop-signal",
            "USR1",
            "--hostname",
            "opt",
        ];
        let run = ["run", "-d", "--name", "opt", "nginx", "sleep", "infinity"];
        host.arctern(&[&run[..2], &options, &run[2..]].concat())?;
        let id = stage.field("opt", "Id")?;
        ensure!(fs::read_to_string(&cid)? == id, "the file has another id");
        ensure!(fs::read_to_string(&pid)? == stage.field("opt", "State.Pid")?);
        let script = "echo $ONE $TWO; hostname; cat /proc/sys/net/core/somaxconn; \
                      cut -d ' ' -f 1 /proc/1/comm; grep -c 10.9.8.7 /etc/hosts; \
                      grep -c nameserver.192.0.2.53 /etc/resolv.conf; \
                      grep -c ndots:2 /etc/resolv.conf; echo x > /dev/nil && echo device";
        let ask = |name: &str| {
            host.arctern(&["exec", "-e", "ONE", "-e", "TWO=a b", name, "sh", "-c", script])
        };
        let expected = "a b\nopt\n77\ninit\n1\n1\n1\ndevice";
        let own = host.arctern(&["exec", "opt", "sh", "-c", script])?;
        ensure!(own == format!("one {expected}"), "{own}");
        ensure!(ask("opt")?.ends_with(expected));
        ensure!(stage.field("opt", "Config.Labels")?.contains("tier:front"));
        ensure!(stage.field("opt", "Config.Annotations")?.contains("org.example:yes"));
        let again = host.attempt(&["create", "--cidfile", &cid, "nginx"])?;
        ensure!(refusal(&again).1.contains("is there already"), "{again:?}");
        let archive = path("opt.tar");
        host.arctern(&["container", "checkpoint", "--latest", "--file", &archive])?;
        let restore = ["container", "restore", "--name", "opt2", "--file", &archive];
        // The host's device and settings of the kernel are not for the archive to ask for.
        let refused = refusal(&host.attempt(&restore)?).1;
        ensure!(refused.contains("device /dev/null (rw) (--trust)"), "{refused}");
        ensure!(refused.contains("net.core.somaxconn=77 (--trust)"), "{refused}");
        host.arctern(&[&restore[..], &["--trust"]].concat())?;
        let moved = host.arctern(&["exec", "opt2", "sh", "-c", script])?;
        ensure!(moved == format!("one {expected}"), "{moved}");
        host.arctern(&["rm", "-f", "-t", "0", "--all"])?;
        Ok(())
    })
}

#[test]
fn checkpoints_of_all_and_restores_of_all() -> Result<(), String> {
    judge("commands::all", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        for name in ["one", "two"] {
            stage.script(name, &[], "sleep infinity")?;
        }
        host.arctern(&["pause", "two"])?;
        host.arctern(&["checkpoint", "--all"])?;
        let states = ["ps", "-a", "--sort", "names", "--format", "{{.Names}}={{.State}}"];
        ensure!(host.arctern(&states)? == "one=checkpointed\ntwo=paused");
        host.arctern(&["unpause", "two"])?;
        host.arctern(&["checkpoint", "--all", "--print-stats"])?;
        host.arctern(&["restore", "--all", "--keep"])?;
        ensure!(host.arctern(&states)? == "one=running\ntwo=running");
        // They are still there after a command that had the container in hand.
        host.arctern(&["exec", "one", "true"])?;
        host.arctern(&["stop", "-t", "0", "one"])?;
        let kept = host.arctern(&["checkpoint", "ls"])?;
        ensure!(kept.contains("one") && kept.contains("two"), "kept after --keep:\n{kept}");
        host.arctern(&["rm", "-f", "-t", "0", "--filter", "name=one", "--filter", "name=two"])?;
        ensure!(host.arctern(&["ps", "-aq"])?.is_empty());
        Ok(())
    })
}

#[test]
fn logs_are_cut_by_time_and_number() -> Result<(), String> {
    judge("commands::logs", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        stage.script("talks", &[], "echo 1; echo 2 >&2; printf 3; echo .; echo up > /share/fifo; read x < /share/fifo; echo 4")?;
        stage.hear()?;
        let follow = host.command(&["logs", "-f", "talks"]).stdout(Stdio::piped()).spawn()?;
        fs::write(&stage.fifo, "go\n")?;
        let followed = follow.wait_with_output()?;
        ensure!(String::from_utf8_lossy(&followed.stdout) == "1\n3.\n4\n", "{followed:?}");
        ensure!(host.arctern(&["logs", "--tail", "2", "talks"])? == "3.\n4");
        ensure!(host.arctern(&["logs", "--tail", "0", "talks"])?.is_empty());
        let stamped = host.arctern(&["logs", "--timestamps", "--tail", "1", "--latest"])?;
        let (time, text) = stamped.split_once(' ').context("no time")?;
        ensure!(text == "4", "{stamped}");
        ensure!(host.arctern(&["logs", "--since", time, "talks"])? == "4");
        ensure!(host.arctern(&["logs", "--until", time, "talks"])? == "1\n3.");
        ensure!(host.arctern(&["logs", "--since", "1h", "talks"])? == "1\n3.\n4");
        host.arctern(&["rm", "talks"])?;
        Ok(())
    })
}

#[test]
fn commands_in_containers_get_what_they_are_given() -> Result<(), String> {
    judge("commands::exec", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        stage.script("box", &[], "sleep infinity")?;
        let given = ["exec", "-u", "www-data", "-w", "/tmp", "-e", "A=b c", "box"];
        let said = host.arctern(&[&given[..], &["sh", "-c", "id -un; pwd; echo $A"]].concat())?;
        ensure!(said == "www-data\n/tmp\nb c", "{said}");
        host.arctern(&["exec", "-d", "box", "sh", "-c", "echo by itself > /share/fifo"])?;
        ensure!(stage.hear()? == "by itself");
        ensure!(host.arctern(&["exec", "--latest", "echo", "last"])? == "last");
        ensure!(host.attempt(&["exec", "box", "sh", "-c", "exit 9"])?.status.code() == Some(9));
        let mut input = host.command(&["exec", "-i", "box", "cat"]);
        let mut input = input.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        input.stdin.take().context("no input")?.write_all(b"through")?;
        ensure!(input.wait_with_output()?.stdout == b"through");
        host.arctern(&["rename", "box", "crate"])?;
        host.arctern(&["exec", "crate", "true"])?;
        let taken = host.attempt(&["rename", "crate", "a b"])?;
        ensure!(refusal(&taken).1.contains("no valid container name"));
        host.arctern(&["rm", "-f", "-t", "0", "crate"])?;
        Ok(())
    })
}

#[test]
fn attaching_sends_input_and_gives_the_exit_code() -> Result<(), String> {
    judge("commands::attach", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let script = "echo up > /share/fifo; read line; echo got $line; exit 5";
        stage.script("reader", &["-i"], script)?;
        stage.hear()?;
        let mut attach = host.command(&["attach", "reader"]);
        let mut attach = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        attach.stdin.take().context("no input")?.write_all(b"words\n")?;
        let ended = attach.wait_with_output()?;
        ensure!(ended.status.code() == Some(5), "{ended:?}");
        ensure!(ended.stdout == b"got words\n", "{ended:?}");
        ensure!(host.arctern(&["wait", "--latest"])? == "5");
        // One that waits for the start hears of it.
        let waiting = host.command(&["wait", "--condition", "running", "reader"]).spawn()?;
        host.arctern(&["start", "reader"])?;
        stage.hear()?;
        let waited = waiting.wait_with_output()?;
        ensure!(waited.status.success(), "{waited:?}");
        host.arctern(&["kill", "reader"])?;
        host.arctern(&["wait", "reader"])?;
        host.arctern(&["create", "--name", "new", "nginx"])?;
        ensure!(host.arctern(&["container", "prune", "--force"])?.lines().count() == 2);
        ensure!(host.arctern(&["ps", "-aq"])?.is_empty());
        Ok(())
    })
}

#[test]
fn whoever_waits_for_a_start_hears_of_each() -> Result<(), String> {
    judge("commands::wait", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        host.arctern(&["create", "--network", "none", "--name", "it", "nginx", "sleep", "999"])?;
        // A woken one that looks too early would sleep on: that needs some luck.
        for round in 0..20 {
            let waiting = host.command(&["wait", "--condition", "running", "it"]).spawn()?;
            host.arctern(&["start", "it"])?;
            let waited = waiting.wait_with_output()?;
            ensure!(waited.status.success(), "round {round}: {waited:?}");
            host.arctern(&["stop", "-t", "0", "it"])?;
        }
        host.arctern(&["rm", "it"])?;
        Ok(())
    })
}

#[test]
fn fields_are_shown_and_unknown_ones_are_refused() -> Result<(), String> {
    judge("commands::format", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        for name in ["bb", "aa"] {
            host.arctern(&["create", "--label", &format!("n={name}"), "--name", name, "nginx"])?;
        }
        let table = host.arctern(&[
            "ps",
            "-a",
            "--sort",
            "names",
            "--format",
            r"table {{.Names}}\t{{.State}}",
        ])?;
        ensure!(table == "NAMES  STATE\naa     created\nbb     created", "{table}");
        ensure!(host.arctern(&["ps", "--last", "1", "--format", "{{.Names}}"])? == "aa");
        ensure!(
            host.arctern(&["ps", "-a", "--filter", "label=n=bb", "--format", "{{.Labels}}"])?
                == "n=bb"
        );
        ensure!(host.arctern(&["ps", "-aq", "--filter", "until=1h"])?.is_empty());
        let (code, said) = refusal(&host.attempt(&["ps", "--format", "{{.Name}}"])?);
        ensure!(
            code == Some(125) && said.contains("the fields are AutoRemove, Command, Created"),
            "{said}"
        );
        let (_, said) = refusal(&host.attempt(&["ps", "--format", "{{range .}}"])?);
        ensure!(said.contains("is not {{.FIELD}}"), "{said}");
        let json = host.arctern(&["inspect", "--format", "{{json .State.Status}}", "aa"])?;
        ensure!(json == "\"created\"", "{json}");
        if host.attempt(&["inspect", "--type", "image", "aa"])?.status.success() {
            bail!("a container is no image");
        }
        host.arctern(&["rm", "--all"])?;
        Ok(())
    })
}

#[test]
fn files_go_in_and_out_and_links_do_not_lead_out() -> Result<(), String> {
    judge("commands::cp", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let path = |name: &str| host.dir().join(name).to_string_lossy().into_owned();
        fs::create_dir_all(path("tree/deep"))?;
        fs::write(path("tree/deep/file"), "content")?;
        fs::hard_link(path("tree/deep/file"), path("tree/twin"))?;
        std::os::unix::fs::symlink("deep/file", path("tree/link"))?;
        std::os::unix::fs::chown(path("tree/deep/file"), Some(1234), Some(1234))?;
        let (tree, contents) = (path("tree"), path("tree/."));
        stage.script("box", &["-u", "www-data"], "sleep infinity")?;
        let as_root =
            |script: &str| host.arctern(&["exec", "-u", "root", "box", "sh", "-c", script]);
        as_root("mkdir /there; ln -s / /there/up; ln -s /../../there /there/here")?;
        for running in [true, false] {
            if !running {
                host.arctern(&["stop", "-t", "0", "box"])?;
            }
            host.arctern(&["cp", &tree, "box:/there"])?;
            host.arctern(&["cp", &contents, "box:/there/here/"])?;
            host.arctern(&["cp", "--archive=false", &path("tree/twin"), "box:/there/own"])?;
            for wrong in [["box:/no", &tree], [&tree, "box:/there/own"], [&tree, "nobox:/x"]] {
                let (code, said) = refusal(&host.attempt(&["cp", wrong[0], wrong[1]])?);
                ensure!(code == Some(125), "{wrong:?}: {said}");
            }
            let back = path(if running { "back" } else { "back-stopped" });
            host.arctern(&["cp", "box:/there/here/", &back])?;
            let read = |name: &str| fs::read_to_string(format!("{back}/{name}"));
            for name in ["tree/link", "tree/twin", "link", "twin", "own"] {
                ensure!(read(name).context(name.to_owned())? == "content", "{name}");
            }
            ensure!(fs::read_link(format!("{back}/up"))? == PathBuf::from("/"));
            // Through a link to the root: the container's root.
            let (code, said) =
                refusal(&host.attempt(&["cp", &format!("box:/there/up{back}"), "/x"])?);
            ensure!(code == Some(125) && said.contains("No such file"), "{said}");
            let tar = host.attempt(&["cp", "box:/there/tree", "-"])?;
            ensure!(tar.status.success(), "{tar:?}");
            let mut unpack = host.command(&["cp", "-", "box:/there/tree"]);
            let mut unpack = unpack.stdin(Stdio::piped()).spawn()?;
            unpack.stdin.take().context("no input")?.write_all(&tar.stdout)?;
            ensure!(unpack.wait()?.success());
        }
        let (code, said) = refusal(&host.attempt(&["cp", "box:/share/fifo", "/x"])?);
        ensure!(code == Some(125) && said.contains("is in a volume"), "{said}");
        host.arctern(&["start", "box"])?;
        let owners =
            as_root("stat -c %U:%h /there/twin; stat -c %u /there/own; cat /there/tree/tree/link")?;
        ensure!(owners == "www-data:2\n1234\ncontent", "{owners}");
        host.arctern(&["rm", "-f", "-t", "0", "box"])?;
        Ok(())
    })
}

#[test]
fn changes_processes_and_numbers_are_shown() -> Result<(), String> {
    judge("commands::look", || {
        let stage = Stage::new()?;
        let host = &stage.host;
        let script = "echo x > /new; echo x >> /etc/passwd; rm -r /var/www; \
                      echo up > /share/fifo; exec sleep infinity";
        stage.script("look", &["--memory", "64m"], script)?;
        stage.hear()?;
        let changes = host.arctern(&["diff", "look"])?;
        for line in ["A /new", "C /etc", "C /etc/passwd", "C /var", "D /var/www"] {
            ensure!(changes.lines().any(|l| l == line), "no `{line}` in:\n{changes}");
        }
        for word in ["/share", "/proc", "/etc/hosts"] {
            ensure!(!changes.contains(word), "{word} in:\n{changes}");
        }
        let top = host.arctern(&["top", "look", "user", "pid", "ppid,comm", "args"])?;
        ensure!(
            top == "USER  PID  PPID  COMMAND  COMMAND\nroot  1    0     sleep    sleep infinity",
            "{top}"
        );
        let hpid = host.arctern(&["top", "look", "hpid"])?;
        ensure!(hpid.lines().last() == Some(stage.field("look", "State.Pid")?.as_str()), "{hpid}");
        let (code, said) = refusal(&host.attempt(&["top", "look", "colour"])?);
        ensure!(code == Some(125) && said.contains("use user, uid"), "{said}");
        let stats = host.arctern(&["stats", "--no-stream", "--format", "json"])?;
        let stats: serde_json::Value = serde_json::from_str(&stats)?;
        ensure!(stats[0]["name"] == "look" && stats[0]["pids"] == 1, "{stats}");
        let usage = stats[0]["mem_usage"].as_str().unwrap_or_default();
        ensure!(usage.ends_with("/ 67.1 MB") && !usage.starts_with("0 B"), "{usage}");
        // Twice, a second apart, then it is interrupted.
        let table = "{{.Name}} {{.PIDS}}";
        let mut stream = host.command(&["stats", "--interval", "1", "--format", table, "look"]);
        let mut stream = stream.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(stream.stdout.take().context("no output")?).lines();
        for _ in 0..2 {
            ensure!(lines.next().context("the stream ends")?? == "look 1");
        }
        run(Command::new("kill").arg(stream.id().to_string()))?;
        stream.wait()?;
        host.arctern(&["rm", "-f", "-t", "0", "look"])?;
        Ok(())
    })
}
