//! The rights of those who watch: who a caller is, which jobs it may see, and for how long. It knows neither sources nor
//! sockets. `http` asks it before it shows anything of a job, and `delivery` ends the streams whose grant has ended.

mod grant;

pub use grant::{Grant, Withdrawal};
