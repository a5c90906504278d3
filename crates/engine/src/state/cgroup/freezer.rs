//! The freezer of a group of tasks; see [`arctern_sys::freezer`].

pub use arctern_sys::freezer::Freezer;
