//! Why a record is refused.

use std::borrow::Cow;
use std::fmt;

/// Longest reason in bytes; what comes after is cut off, since a reason travels in a message header.
const LONGEST_REASON: usize = 400;

/// Why a module refuses one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Stable, machine-readable, in snake case: what an operator filters and counts by. The code
    /// `malformed` is set apart: it says that the payload is not even readable.
    pub code: Cow<'static, str>,
    /// Path of the field at fault, such as `payment.amount_cents`.
    pub field: Option<Cow<'static, str>>,
    /// One sentence for a person.
    pub reason: Cow<'static, str>,
}

impl Rejection {
    /// A rejection of the record as a whole; [`at`](Self::at) names the field at fault.
    pub fn new(code: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), field: None, reason: shortened(reason.into()) }
    }

    /// The payload is not even readable.
    pub fn malformed(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new("malformed", reason)
    }

    /// Names the field at fault by its path, such as `payment.amount_cents`.
    #[must_use]
    pub fn at(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(formatter, "{} at {field}: {}", self.code, self.reason),
            None => write!(formatter, "{}: {}", self.code, self.reason),
        }
    }
}

impl std::error::Error for Rejection {}

/// Names the field at fault of an error on its way to become a [`Rejection`]:
/// `Date::try_from(session)?` loses where it was, `Date::try_from(session).at("session")?` does not.
pub trait At<T> {
    /// The value, or a rejection at `field`.
    ///
    /// # Errors
    /// The same error, as a rejection at `field`.
    fn at(self, field: &'static str) -> Result<T, Rejection>;
}

impl<T, E: Into<Rejection>> At<T> for Result<T, E> {
    #[inline]
    fn at(self, field: &'static str) -> Result<T, Rejection> {
        self.map_err(|error| error.into().at(field))
    }
}

fn shortened(reason: Cow<'static, str>) -> Cow<'static, str> {
    if reason.len() <= LONGEST_REASON {
        return reason;
    }
    let end = reason.floor_char_boundary(LONGEST_REASON - '…'.len_utf8());
    Cow::Owned(format!("{}…", &reason[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_reads_well() {
        let rejection = Rejection::new("amount_mismatch", "expected 5, found 6");
        assert_eq!(rejection.to_string(), "amount_mismatch: expected 5, found 6");
        assert_eq!(
            rejection.at("payment.amount_cents").to_string(),
            "amount_mismatch at payment.amount_cents: expected 5, found 6"
        );
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = Rejection::malformed("ä".repeat(400)).reason;
        assert!(reason.len() <= LONGEST_REASON && reason.ends_with("ä…"), "{reason}");
        let whole = "x".repeat(LONGEST_REASON);
        assert_eq!(Rejection::malformed(whole.clone()).reason, whole);
    }
}
