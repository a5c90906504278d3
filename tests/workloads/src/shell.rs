//! Real shells: variables, a loop, background jobs, pipelines, here-documents.

use crate::stage::{Checks, Stage, sigset};
use std::os::unix::process::CommandExt;
use std::process::Command;

const LOOP: &str = r#"
word='two words'; count=0; go=; umask 027
trap 'go=1' USR1
sleep 1000 & background=$!
( while :; do echo tick; sleep 0.05; done ) | while read -r line; do
    [ "$line" = tick ] || echo "bad line: $line" >>shell-errors
done & pipeline=$!
exec 3<<END
first
second
END
read -r before <&3
echo ready >ready
while [ -z "$go" ]; do
    count=$((count + 1))
    echo "$count" >count.new
    mv count.new count
    sleep 0.02
done
status=0
wrong() { echo "shell: $*" >&2; status=1; }
[ "$(cat count)" = "$count" ] || wrong "counted $count, the file says $(cat count)"
[ "$word" = 'two words' ] || wrong "variable is $word"
[ "$(umask)" = 0027 ] || wrong "umask is $(umask)"
read -r after <&3
[ "$before$after" = firstsecond ] || wrong "here-document gave $before$after"
kill -0 "$background" || wrong "the background job is gone"
kill -0 "$pipeline" || wrong "the pipeline is gone"
kill "$background" "$pipeline"
wait "$background"
[ $? = 143 ] || wrong "the background job ended with $?"
wait "$pipeline"
[ -e shell-errors ] && wrong "$(cat shell-errors)"
[ $status = 0 ] && echo 'shell: ok'
exit $status
"#;

/// Becomes a shell that counts in a loop beside a background job and a pipeline.
pub fn shell(_stage: &Stage, _checks: &mut Checks) {
    let set = sigset(&[libc::SIGUSR1]);
    crate::must!(libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()));
    let error = Command::new("/bin/sh").args(["-c", LOOP]).exec();
    panic!("no shell: {error}");
}
