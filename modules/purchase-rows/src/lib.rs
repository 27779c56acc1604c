//! The purchase pipeline's mapper: one purchase, one row of the output `purchases`.
//!
//! It relies on no validator: whatever does not fit its column is rejected here too, with the same
//! codes. Rules about what is a *good* purchase are the validator's.

use purchase_message::Purchase;
use sluice_sdk::{
    Date, DateTime64, LowCardinality, Mapper, NoSettings, Output, Record, Rejection, Row, mapper,
};

/// A row of the table `purchases`; ClickHouse and the host fill the columns that are not here.
#[derive(Clone, Debug, PartialEq, Eq, Row)]
#[row(output = "purchases")]
pub struct PurchaseRow<'a> {
    /// What the shop calls this purchase.
    pub purchase_id: &'a str,
    /// Who bought.
    pub user_id: u64,
    /// Who gives the training.
    pub trainer_id: u64,
    /// When it was bought, to the millisecond.
    pub timestamp: DateTime64<3>,
    /// The kind of training.
    pub training_type: LowCardinality<&'a str>,
    /// Which training.
    pub training_id: u64,
    /// Its title.
    pub training_title: &'a str,
    /// Its category.
    pub training_category: LowCardinality<&'a str>,
    /// Its price.
    pub price_cents: u32,
    /// What was taken off the price.
    pub discount_cents: u32,
    /// The UTC day of the session.
    pub session_date: Date,
    /// The means of payment.
    pub payment_method: LowCardinality<&'a str>,
    /// What became of the payment.
    pub payment_status: LowCardinality<&'a str>,
    /// What was paid.
    pub payment_amount_cents: u32,
    /// In which currency.
    pub payment_currency: LowCardinality<&'a str>,
}

/// Maps purchases.
#[derive(Clone, Copy, Debug)]
pub struct PurchaseRows;

impl Mapper for PurchaseRows {
    type Settings = NoSettings;
    type Outputs = Output<PurchaseRow<'static>>;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn map(&self, record: &Record<'_>, purchases: &mut Self::Outputs) -> Result<(), Rejection> {
        let purchase = Purchase::read(record)?;
        let (training, payment) = (&purchase.training, &purchase.payment);
        purchases.emit(PurchaseRow {
            purchase_id: &purchase.purchase_id,
            user_id: purchase.user_id.column("user_id")?,
            trainer_id: purchase.trainer_id.column("trainer_id")?,
            timestamp: purchase.timestamp_column()?,
            training_type: LowCardinality(&training.training_type),
            training_id: training.training_id.column("training.training_id")?,
            training_title: &training.title,
            training_category: LowCardinality(&training.category),
            price_cents: training.price_cents,
            discount_cents: training.discount_cents,
            session_date: purchase.session_date_column()?,
            payment_method: LowCardinality(&payment.method),
            payment_status: LowCardinality(&payment.status),
            payment_amount_cents: payment.amount_cents,
            payment_currency: LowCardinality(&payment.currency),
        });
        Ok(())
    }
}

mapper!(PurchaseRows);

#[cfg(test)]
mod tests;
