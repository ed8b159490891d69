//! The simulated world and its virtual clock: forecast, rehearsal and the property tests.
//!
//! It runs the engine itself, so that what it foretells cannot differ from what the engine does. It may use
//! `api` and `engine`, and nothing else.
