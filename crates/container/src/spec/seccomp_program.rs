//! The system call filter as the program that the kernel runs.
//!
//! The OCI library compiles and loads a profile in one step, at a start. A restore needs the same
//! program as bytes: it compares the oldest filter of every thread with it.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext};
use libseccomp::{ScmpSyscall, error::SeccompError};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator,
};

use crate::error::{Error, Result};

/// Compiles a profile of [`super::seccomp::profile`], in the order in which the OCI library does.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let context = build(profile).map_err(Error::runtime("compile the system call filter of"))?;
    let name = "make a file for the system call filter";
    let memory = rustix::fs::memfd_create("filter", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(Error::system(name))?;
    context.export_bpf(&memory).map_err(Error::runtime("compile the system call filter of"))?;
    let mut file = std::fs::File::from(memory);
    let mut program = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut program))
        .map_err(Error::system("read the system call filter"))?;
    Ok(program)
}

fn build(profile: &LinuxSeccomp) -> std::result::Result<ScmpFilterContext, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*arch))?;
    }
    context.set_ctl_nnp(false)?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        let comparisons: Vec<_> = rule.args().iter().flatten().map(comparison).collect();
        for name in rule.names() {
            // A call that the library does not know yet.
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            match comparisons.is_empty() {
                true => context.add_rule(action, call)?,
                false => context.add_rule_conditional(action, call, &comparisons)?,
            };
        }
    }
    Ok(context)
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let compare = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            ScmpCompareOp::MaskedEqual(argument.value_two().unwrap_or(0))
        }
    };
    // Indices are below 6.
    ScmpArgCompare::new(argument.index() as u32, compare, argument.value())
}

/// Our profiles allow or answer an error, nothing else.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        _ => ScmpAction::Errno(errno.and_then(|e| i32::try_from(e).ok()).unwrap_or(1)),
    }
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchArm => ScmpArch::Arm,
        _ => ScmpArch::Native,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_whole_and_always_the_same() {
        let profile = super::super::seccomp::profile(&["CAP_CHOWN"].into()).expect("profile");
        let program = compile(&profile).expect("program");
        // `struct sock_filter` has 8 bytes.
        assert!(program.len() > 800 && program.len().is_multiple_of(8), "{}", program.len());
        assert_eq!(compile(&profile).expect("again"), program);
    }
}
