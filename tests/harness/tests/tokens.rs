//! Images to and from a real registry that wants tokens of a server.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use arctern_harness::crash;
use arctern_harness::host::Host;
use arctern_harness::registry::{ADDRESS, CREDS, Registry};
use arctern_harness::skips::judge;

#[test]
fn tokens_are_fetched_for_what_is_done() -> Result<(), String> {
    judge("tokens::scopes", || {
        let (a, b) = (Host::new()?, Host::new()?);
        let mut registry = Registry::with_tokens()?;
        registry.serve(&a)?;
        registry.serve(&b)?;
        crash::tiny_image(&a)?;
        let (public, private) = (format!("{ADDRESS}/public/app"), format!("{ADDRESS}/team/app"));
        for name in [&public, &private] {
            a.arctern(&["tag", "tiny", name])?;
            let refused = registry.refusal(&a, &["push", name])?;
            ensure!(refused.contains("does not let strangers push"), "{refused}");
        }
        let wrong = registry.refusal(&a, &["login", "-u", "user", "-p", "wrong", ADDRESS])?;
        ensure!(wrong.contains("does not let user in"), "{wrong}");
        registry.login(&a)?;
        registry.arctern(&a, &["push", "-q", &public])?;
        registry.arctern(&a, &["push", "-q", &private])?;
        let asked = registry.requests()?;
        ensure!(asked.contains("repository:team/app:pull,push user"), "{asked}");

        // Who is nobody pulls what is for all, and nothing else.
        registry.arctern(&b, &["pull", "-q", &public])?;
        let refused = registry.refusal(&b, &["pull", &private])?;
        ensure!(refused.contains("does not let strangers pull from team/app"), "{refused}");
        let asked = registry.requests()?;
        ensure!(asked.contains("repository:public/app:pull nobody"), "{asked}");
        registry.arctern(&b, &["pull", "-q", "--creds", CREDS, &private])?;
        let id = |host: &Host| host.arctern(&["images", "-q", "--no-trunc"]);
        ensure!(id(&a)? == id(&b)?, "another image");
        Ok(())
    })
}
