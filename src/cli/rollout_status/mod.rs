//! `kubectl rollout-status`: what a Rollout does, why it waits, what comes next and how to stop it.
//!
//! [`facts`] (what is known) → [`view`] (what is told) → [`render`] (lines) is pure; [`until`] and [`verbs`]
//! are too. [`command`] is the shell around them, and asks the API server through [`super::fetch`] only.

pub mod command;
pub mod facts;
pub mod render;
#[cfg(test)]
mod tests;
pub mod undo;
pub mod until;
pub mod verbs;
pub mod view;
