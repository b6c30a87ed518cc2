//! Validating admission: mistakes are refused before they are stored, with the texts of `weft analyze`.
//!
//! `review` decides about one object, `server` listens to the API server, and `registration` keeps the CA of our
//! certificate in the webhook's configuration. A ValidatingAdmissionPolicy could not say what the decoder says; and
//! since the webhook fails open, a controller that is away is in nobody's way.

mod registration;
mod review;
mod server;

pub(super) use registration::keep_registered;
pub(super) use server::serve;
