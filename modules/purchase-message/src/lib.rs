//! The purchase message: what both modules of the purchase pipeline read.
//!
//! One JSON object. Strings without escapes are borrowed from the payload. What is a field's type
//! is settled here, what is a good value by the validator; both modules refuse what is no message
//! with the same codes (modules/README.md), so the mapper is safe without the validator.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use sluice_sdk::{At, Date, DateTime64, Record, Rejection, Timestamp};

/// Somebody bought a training.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Purchase<'a> {
    /// Who bought it.
    pub user_id: Id,
    /// Who gives the training.
    pub trainer_id: Id,
    /// What the shop calls this purchase.
    #[serde(borrow)]
    pub purchase_id: Cow<'a, str>,
    /// When it was bought.
    pub timestamp: Timestamp,
    /// What was bought.
    #[serde(borrow)]
    pub training: Training<'a>,
    /// How it was paid for.
    #[serde(borrow)]
    pub payment: Payment<'a>,
}

/// What was bought.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Training<'a> {
    /// The kind of training, such as `group`.
    #[serde(borrow, rename = "type")]
    pub training_type: Cow<'a, str>,
    /// Which training.
    pub training_id: Id,
    /// Its title.
    #[serde(borrow)]
    pub title: Cow<'a, str>,
    /// Its category, such as `yoga`.
    #[serde(borrow)]
    pub category: Cow<'a, str>,
    /// Its price.
    pub price_cents: u32,
    /// What is taken off the price.
    pub discount_cents: u32,
    /// When it takes place.
    pub session_date: Timestamp,
}

/// How it was paid for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Payment<'a> {
    /// The means of payment, such as `card`.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// What became of the payment, such as `completed`.
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    /// What was paid.
    pub amount_cents: u32,
    /// In which currency.
    #[serde(borrow)]
    pub currency: Cow<'a, str>,
}

impl<'a> Purchase<'a> {
    /// Reads a record's payload.
    ///
    /// # Errors
    /// A rejection where there is no payload, or it is no purchase message.
    #[inline]
    pub fn read(record: &Record<'a>) -> Result<Self, Rejection> {
        record.json()
    }

    /// The purchase's point in time, as its column holds it.
    ///
    /// # Errors
    /// When the column cannot hold it.
    #[inline]
    pub fn timestamp_column(&self) -> Result<DateTime64<3>, Rejection> {
        DateTime64::try_from(self.timestamp).at("timestamp")
    }

    /// The session's UTC day, as its column holds it.
    ///
    /// # Errors
    /// When the column cannot hold it.
    #[inline]
    pub fn session_date_column(&self) -> Result<Date, Rejection> {
        Date::try_from(self.training.session_date).at("training.session_date")
    }
}

/// An identifier: any integer, until [`column`](Self::column) says that it is a good one. Wider
/// than the column, so that a negative one is told from one that is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Id(pub i128);

impl Id {
    /// The identifier as its column holds it; `field` is where it came from.
    ///
    /// # Errors
    /// When it is not positive, or beyond `UInt64`.
    #[inline]
    pub fn column(self, field: &'static str) -> Result<u64, Rejection> {
        match u64::try_from(self.0) {
            Ok(id) if id > 0 => Ok(id),
            _ => Err(self.refusal().at(field)),
        }
    }

    #[cold]
    fn refusal(self) -> Rejection {
        if self.0 <= 0 {
            Rejection::new("non_positive_id", format!("an identifier is positive, not {self}"))
        } else {
            Rejection::new("out_of_range", format!("{self} does not fit UInt64"))
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
