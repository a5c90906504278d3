//! Faults that tests ask for: `ARCTERN_FAULT=capture:K` or `restore:K` makes the K-th step of the
//! operation fail (counted from 0; a step's name works too).

/// The fault of one kind of operation, if a test asks for one.
#[derive(Debug, Default)]
pub struct Faults {
    wanted: Option<String>,
    next: usize,
}

impl Faults {
    /// Looks for a fault of `operation` in the environment.
    pub fn from_env(operation: &str) -> Self {
        let wanted = std::env::var("ARCTERN_FAULT").ok().and_then(|value| {
            let (kind, step) = value.split_once(':')?;
            (kind == operation).then(|| step.to_owned())
        });
        Faults { wanted, next: 0 }
    }

    /// Counts a step; the step's name if it is to fail.
    pub fn step(&mut self, name: &str) -> Result<(), String> {
        let number = self.next;
        self.next += 1;
        match &self.wanted {
            Some(wanted) if *wanted == number.to_string() || wanted == name => Err(name.to_owned()),
            _ => Ok(()),
        }
    }
}
