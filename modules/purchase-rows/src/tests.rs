//! Every rule, obeyed and violated.
