//! What containers that move together have in common: one conversation, and moments at which each waits
//! for the others. Each is captured by a thread of its own.
//!
//! Whoever goes on here, before the commit was sent, takes the others along. The commit is sent when
//! all are parked and all markers say so: by the last of them, once.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arctern_container::transfer::Passage;

use super::conversation::Conversation;
use crate::error::MigrateError;
use crate::message::{Answer, Building, Release, Request};
use crate::transport::Outgoing;
use crate::wire::Sender;

/// What all that move have in common.
pub(super) struct Together {
    /// How many they are.
    count: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// Why one of them cannot go on; what it was is kept once for all.
#[derive(Debug, thiserror::Error)]
pub(super) enum Apart {
    /// The conversation failed.
    #[error("the other host did not take the container")]
    NotTaken,
    /// Another one of them goes on here.
    #[error("a container that moves with it stays")]
    Another,
}

impl From<Apart> for io::Error {
    fn from(apart: Apart) -> io::Error {
        io::Error::other(apart)
    }
}

/// How a move ended, but for what each of its containers says.
pub(super) struct Ended {
    pub(super) conversation: Conversation,
    /// Why the conversation failed.
    pub(super) failure: Option<MigrateError>,
    /// The one that left first, by its place in the offer.
    pub(super) first: Option<usize>,
}

struct State {
    conversation: Conversation,
    failure: Option<MigrateError>,
    first: Option<usize>,
    /// Whose turn it is to send in the freeze.
    turn: usize,
    stand: Meeting<()>,
    built: Meeting<Result<Vec<Building>, Apart>>,
    commit: Meeting<Result<Option<Vec<Release>>, Apart>>,
}

/// A moment at which all are to be.
struct Meeting<T> {
    come: usize,
    /// What came of it.
    result: Option<T>,
}

impl<T> Default for Meeting<T> {
    fn default() -> Self {
        Meeting { come: 0, result: None }
    }
}

impl Together {
    pub(super) fn new(conversation: Conversation, count: usize) -> Together {
        let state = State {
            conversation,
            failure: None,
            first: None,
            turn: 0,
            stand: Meeting::default(),
            built: Meeting::default(),
            commit: Meeting::default(),
        };
        Together { count, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// What is left when all have ended.
    pub(super) fn end(self) -> Ended {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let State { conversation, failure, first, .. } = state;
        Ended { conversation, failure, first }
    }

    /// The sending half of the conversation.
    pub(super) fn sender(&self) -> Sender<Outgoing> {
        self.state().conversation.transport.sender()
    }

    /// One of them is not in the move any more. Before the commit nobody is then.
    pub(super) fn leave(&self, place: usize) {
        self.state().first.get_or_insert(place);
        self.changed.notify_all();
    }

    /// Why they do not move: the first reason is told.
    pub(super) fn fail(&self, error: MigrateError) -> Box<Apart> {
        self.state().failure.get_or_insert(error);
        Box::new(Apart::NotTaken)
    }

    /// Waits until all stand still. Nothing but their sockets, which are locked, was read before.
    pub(super) fn stands(&self) -> Result<(), Apart> {
        self.meet(|state| &mut state.stand, |_| ()).map(drop)
    }

    /// Waits until this one may send its memory and its archive.
    pub(super) fn turn(&self, place: usize) -> Result<(), Apart> {
        let waits = |state: &mut State| state.turn != place && state.first.is_none();
        let state = self.changed.wait_while(self.state(), waits);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        match state.turn == place {
            true => Ok(()),
            false => Err(Apart::Another),
        }
    }

    /// The archive of one is sent, or was not; waits until all are built.
    pub(super) fn built(
        &self,
        place: usize,
        sent: io::Result<()>,
        patience: Duration,
    ) -> Result<Building, Apart> {
        let mut state = self.state();
        if let Err(error) = sent {
            let error = state.conversation.transport.failed(error);
            return Err(state.fail(error.into()));
        }
        state.turn = place + 1;
        drop(state);
        self.changed.notify_all();
        let count = self.count;
        let mut state = self.meet(
            |state| &mut state.built,
            |state| match state.conversation.answer(patience) {
                Ok(Answer::Built(all)) if all.len() == count => Ok(all),
                other => Err(state.not_expected(other)),
            },
        )?;
        match &mut state.built.result {
            Some(Ok(all)) => Ok(all[place].clone()),
            _ => Err(Apart::NotTaken),
        }
    }

    /// Tells of connections that come by way of this host.
    pub(super) fn pass(
        &self,
        place: usize,
        passage: &Passage,
        patience: Duration,
    ) -> Result<Option<String>, Apart> {
        let mut state = self.state();
        let request = Request::Pass(place, Box::new(passage.clone()));
        if let Err(error) = state.conversation.transport.send(&request) {
            return Err(state.fail(error.into()));
        }
        match state.conversation.answer(patience) {
            Ok(Answer::Passed { refused }) => Ok(refused),
            other => Err(state.not_expected(other)),
        }
    }

    /// One is parked, and it is written down that it may be gone. When that is so of all they are
    /// handed over. Gives what became of this one at the other side; none: they go on here.
    ///
    /// # Errors
    /// Nobody knows.
    pub(super) fn commit(
        &self,
        place: usize,
        patience: Duration,
    ) -> Result<Option<Release>, Apart> {
        let count = self.count;
        let met = self.meet(
            |state| &mut state.commit,
            |state| {
                if let Err(error) = state.conversation.transport.send(&Request::Commit) {
                    // A part of it may have arrived.
                    return Err(state.fail(error.into()));
                }
                match state.conversation.answer(patience) {
                    Ok(Answer::Running(all)) if all.len() == count => Ok(Some(all)),
                    Ok(Answer::GivenUp) => {
                        let _ = state.not_expected(Ok(Answer::GivenUp));
                        Ok(None)
                    }
                    // Whatever it failed with, only its verdict says whose the containers are.
                    other => Err(state.not_expected(other)),
                }
            },
        );
        match met {
            Ok(state) => match &state.commit.result {
                Some(Ok(all)) => Ok(all.as_ref().map(|all| all[place].clone())),
                _ => Err(Apart::NotTaken),
            },
            // Nothing was sent.
            Err(_) => Ok(None),
        }
    }

    /// Waits for all at a meeting, where the last who comes acts for all.
    fn meet<T>(
        &self,
        meeting: impl Fn(&mut State) -> &mut Meeting<T>,
        act: impl FnOnce(&mut State) -> T,
    ) -> Result<MutexGuard<'_, State>, Apart> {
        let mut state = self.state();
        meeting(&mut state).come += 1;
        if state.first.is_none() && meeting(&mut state).come == self.count {
            let result = act(&mut state);
            meeting(&mut state).result = Some(result);
            self.changed.notify_all();
        }
        let waits = |state: &mut State| meeting(state).result.is_none() && state.first.is_none();
        let waited = self.changed.wait_while(state, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        // What all have come to holds, whoever has left since.
        match meeting(&mut state).result {
            Some(_) => Ok(state),
            None => Err(Apart::Another),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, error: MigrateError) -> Apart {
        self.failure.get_or_insert(error);
        Apart::NotTaken
    }

    fn not_expected(&mut self, answer: Result<Answer, MigrateError>) -> Apart {
        let error = match answer {
            Ok(answer) => self.conversation.out_of_turn(&answer),
            Err(error) => error,
        };
        self.fail(error)
    }
}
