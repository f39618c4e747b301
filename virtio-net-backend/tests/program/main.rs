//! The real program over its real sockets: VMMs that were recorded, and guests that mean harm.

mod commands;
mod door;
mod fairness;
mod frontend;
mod hostile;
mod pairs;
mod replay;
