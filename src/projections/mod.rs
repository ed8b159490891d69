//! Who else is told of a transition once it is in the ledger: what is said, and how it is sent. One file a language.
//!
//! What is said is made from the ledger's commit alone, so that telling it again says the same under the same
//! identity. Text that people or metrics wrote is shown as text, whatever it holds: it makes no link, no mention and no
//! formatting. Addresses are secrets here, and like tokens they stand in no error and no `Debug`. Of what the other
//! side answers only a class is told. The room knows no cluster, and no cursor.

mod chat;
mod cloud_event;
mod commit;
mod error;
mod event;
mod receiver;
#[cfg(test)]
mod tests;

use std::fmt;

use chrono::{DateTime, Utc};

pub use commit::ForgeSink;
pub use error::DeliveryError;
pub use event::Event;
pub use receiver::{Format, Receiver};

/// Somebody who is told. Cheap to clone.
#[derive(Clone)]
pub enum Sink {
    /// A server that takes a request for each transition.
    Receiver(Receiver),
    /// The forge, which shows how it goes beside the commit that asked for it.
    Forge(Box<ForgeSink>),
}

impl Sink {
    /// Tells it, once. After a lost answer it may be told again: by its identity the other side knows it.
    ///
    /// # Errors
    /// When it is not certain that the other side has taken it.
    pub async fn deliver(&self, event: &Event, now: DateTime<Utc>) -> Result<(), DeliveryError> {
        match self {
            Self::Receiver(receiver) => receiver.deliver(event, now).await,
            Self::Forge(forge) => forge.deliver(event).await,
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receiver(receiver) => receiver.fmt(f),
            Self::Forge(forge) => forge.fmt(f),
        }
    }
}

/// At most so many letters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}
