//! The vDSO: code of the kernel that every program has mapped, and that differs between kernels.
//!
//! A restored task gets this kernel's vDSO at the old address. That is right only if the code is
//! the same: programs hold addresses of its functions, and a thread may stand inside one.

use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::proc::smaps;
use arctern_sys::{PAGE_SIZE, Pid};

use super::space::AddressSpace;
use super::vma::status;
use crate::error::{Refusal, RestoreError};
use crate::restore_context::{failed, subject};

/// The end of the last page is no code: captures put theirs there for a moment, and one whose
/// program was killed may have left it.
const TAIL: usize = 512;

/// This kernel's vDSO, as this program has it mapped.
#[derive(Debug)]
pub struct HostVdso {
    code: Vec<u8>,
    /// Bytes of the kernel's variables in front of it.
    variables: u64,
}

impl HostVdso {
    /// Reads it.
    pub fn read() -> Result<Self, RestoreError> {
        let me = Pid(std::process::id() as i32);
        let about = || subject(me.0, "arctern", "[vdso]");
        let maps = smaps::read_maps(me).map_err(failed(about(), "read its mappings"))?;
        let named = |name: &'static str| maps.iter().filter(move |m| m.name.starts_with(name));
        let Some(vdso) = named("[vdso]").next() else {
            return Err(RestoreError::Inconsistent("this kernel gives no vDSO".to_owned()));
        };
        let mut code = vec![0; (vdso.end - vdso.start) as usize];
        memory::read(me, RemoteAddr(vdso.start), &mut code).map_err(failed(about(), "read it"))?;
        Ok(HostVdso { code, variables: named("[vvar").map(|m| m.end - m.start).sum() })
    }

    /// Refuses a task whose vDSO is another one.
    pub fn check(
        &self,
        pid: i32,
        comm: &str,
        space: &AddressSpace,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), RestoreError> {
        let mut refuse = |cause: &str| {
            refusals.push(Refusal {
                subject: subject(pid, comm, "mapping [vdso]"),
                cause: cause.to_owned(),
                remedy: "restore it on a host with the kernel on which it was captured".into(),
            });
        };
        let Some(vdso) = space.vdso() else {
            refuse("the task has none, which cannot be rebuilt");
            return Ok(());
        };
        let variables: u64 = space
            .mm
            .vmas
            .iter()
            .filter(|v| v.status & status::VVAR != 0)
            .map(|v| v.end - v.start)
            .sum();
        if vdso.end - vdso.start != self.code.len() as u64 || variables != self.variables {
            refuse("the kernel's code in the task has another layout than this kernel's");
            return Ok(());
        }
        let Some(pages) = &space.pages else { return Ok(()) };
        let mut page = [0u8; PAGE_SIZE as usize];
        for (at, ours) in self.code.chunks_exact(PAGE_SIZE as usize).enumerate() {
            let last = (at + 1) * PAGE_SIZE as usize == self.code.len();
            let compared = if last { page.len() - TAIL } else { page.len() };
            let address = vdso.start + at as u64 * PAGE_SIZE;
            if pages.read_page(address, &mut page)? && page[..compared] != ours[..compared] {
                refuse("the kernel's code in the task is another than this kernel's");
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arctern_image::messages::{MmEntry, VmaEntry};

    #[test]
    fn another_vdso_is_refused_by_name() {
        let host = HostVdso::read().unwrap();
        let area = |start: u64, length: u64, status: u32| VmaEntry {
            start,
            end: start + length,
            status,
            ..VmaEntry::default()
        };
        let space = |longer: u64| {
            let code = host.code.len() as u64 + longer;
            let vmas = vec![
                area(0x1000, host.variables, status::VVAR),
                area(0x1000 + host.variables, code, status::VDSO),
            ];
            AddressSpace { mm: MmEntry { vmas, ..MmEntry::default() }, pages: None }
        };
        let mut refusals = Vec::new();
        host.check(7, "program", &space(0), &mut refusals).unwrap();
        assert!(refusals.is_empty(), "{refusals:?}");
        host.check(7, "program", &space(PAGE_SIZE), &mut refusals).unwrap();
        let text = refusals[0].to_string();
        assert!(text.contains("process 7 (program), mapping [vdso]"), "{text}");
        assert!(text.contains("another layout"), "{text}");
    }
}
