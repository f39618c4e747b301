//! When who keeps the sessions is told of them: before a frontend's messages are begun, after them, and whenever else a
//! port changes.
//!
//! While there is no room for that, messages wait, those of the port that filled it and of any other alike, and then have
//! their turns in the order in which they came. Frames never wait.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::keeper::Keeper;
use super::worker::Worker;

/// How soon we come again when there was no room.
const AGAIN: Duration = Duration::from_millis(5);

/// Who keeps the sessions, and what it is still to be told.
#[derive(Default)]
pub(super) struct Keeping {
    keeper: Option<Keeper>,
    /// Ports that wait for room, in their order.
    untold: VecDeque<u16>,
    /// Set while there is none.
    again_at: Option<Instant>,
}

impl Keeping {
    /// When to come again, if something is still to be told.
    pub(super) const fn again_at(&self) -> Option<Instant> {
        self.again_at
    }
}

impl Worker {
    /// Someone keeps the sessions from here on, in place of who did before.
    pub(super) fn keep_by(&mut self, keeper: Keeper) {
        self.set_keeper(Some(keeper));
        let numbers: Vec<u16> = self.network.ports().map(|(n, _)| n).collect();
        numbers.into_iter().for_each(|number| self.keep(number));
    }

    fn set_keeper(&mut self, keeper: Option<Keeper>) {
        self.keeping.keeper = keeper;
        self.keeping.again_at = None;
        for number in std::mem::take(&mut self.keeping.untold) {
            self.serve_soon(number);
        }
    }

    /// Tells who keeps it what a port is now.
    pub(super) fn keep(&mut self, number: u16) {
        self.tell(number, true);
    }

    /// Whether that was told, its session only `with_session`. If not, the port waits until it can be, and where messages
    /// are to be begun others that wait are before it.
    pub(super) fn tell(&mut self, number: u16, with_session: bool) -> bool {
        let (Some(keeper), Some(port)) = (&mut self.keeping.keeper, self.network.port(number))
        else {
            return true;
        };
        let told = if self.keeping.again_at.is_some() && !with_session {
            Ok(false)
        } else {
            keeper.tell_port(port, with_session)
        };
        let told = self.kept(told);
        if !told && !self.keeping.untold.contains(&number) {
            self.keeping.untold.push_back(number);
        }
        told
    }

    /// Goes on with the ports that waited, as far as there is room.
    pub(super) fn tell_again(&mut self) {
        self.keeping.again_at = None;
        self.tell_gone();
        while self.keeping.again_at.is_none()
            && let Some(number) = self.keeping.untold.pop_front()
        {
            match self.network.port(number).map(|port| &port.session) {
                Some(Some(_)) => self.serve(number),
                Some(None) => self.keep(number),
                None => {}
            }
        }
    }

    /// A port was removed.
    pub(super) fn keep_no_more(&mut self, name: &str) {
        if let Some(keeper) = &mut self.keeping.keeper {
            keeper.forget(name.to_owned());
            self.tell_gone();
        }
    }

    fn tell_gone(&mut self) {
        if let Some(keeper) = &mut self.keeping.keeper {
            let told = keeper.tell_gone();
            self.kept(told);
        }
    }

    /// False when there was no room, and we come again. Who is not there any more, or stands still, keeps nothing.
    fn kept(&mut self, told: io::Result<bool>) -> bool {
        match told {
            Ok(true) => true,
            Ok(false) => {
                self.keeping
                    .again_at
                    .get_or_insert_with(|| Instant::now() + AGAIN);
                false
            }
            Err(error) => {
                tracing::debug!(%error, "nobody keeps the sessions any more");
                self.set_keeper(None);
                true
            }
        }
    }
}
