//! The rules themselves: read the message (purchase-message), then apply the rules in the order of the
//! codes in modules/README.md; the first that is broken is the rejection. Codes are stable.

mod currency;
mod settings;

use purchase_message::Purchase;
use sluice_sdk::{Record, Rejection, Validator};

pub use settings::Settings;

/// The rules for one purchase.
#[derive(Clone, Debug)]
pub struct PurchaseRules {
    settings: Settings,
}

impl Validator for PurchaseRules {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        settings.check()?;
        Ok(Self { settings })
    }

    fn validate(&self, record: &Record<'_>) -> Result<(), Rejection> {
        let purchase = Purchase::read(record)?;
        check_identity(&purchase)?;
        check_money(&purchase)?;
        self.check_payment(&purchase)?;
        self.check_time(&purchase, record.timestamp())
    }
}

#[inline]
fn check_identity(purchase: &Purchase<'_>) -> Result<(), Rejection> {
    if purchase.purchase_id.trim_ascii().is_empty() {
        return Err(Rejection::new("empty_purchase_id", "a purchase has an identifier").at("purchase_id"));
    }
    purchase.user_id.column("user_id")?;
    purchase.trainer_id.column("trainer_id")?;
    purchase.training.training_id.column("training.training_id")?;
    Ok(())
}

#[inline]
fn check_money(purchase: &Purchase<'_>) -> Result<(), Rejection> {
    let (price, discount) = (purchase.training.price_cents, purchase.training.discount_cents);
    let Some(due) = price.checked_sub(discount) else {
        let reason = format!("the discount, {discount} cents, is above the price, {price} cents");
        return Err(Rejection::new("discount_above_price", reason).at("training.discount_cents"));
    };
    let paid = purchase.payment.amount_cents;
    if paid != due {
        let reason = format!("{price} cents less {discount} cents are {due} cents, but {paid} were paid");
        return Err(Rejection::new("amount_mismatch", reason).at("payment.amount_cents"));
    }
    Ok(())
}

impl PurchaseRules {
    #[inline]
    fn check_payment(&self, purchase: &Purchase<'_>) -> Result<(), Rejection> {
        let payment = &purchase.payment;
        if !currency::is_known(&payment.currency) {
            return Err(
                not_in("unknown_currency", &payment.currency, "an ISO 4217 currency").at("payment.currency")
            );
        }
        if !listed(&self.settings.currencies, &payment.currency) {
            return Err(not_in("currency_not_allowed", &payment.currency, "an allowed currency")
                .at("payment.currency"));
        }
        if !listed(&self.settings.statuses, &payment.status) {
            return Err(
                not_in("status_not_allowed", &payment.status, "an allowed status").at("payment.status")
            );
        }
        if !listed(&self.settings.methods, &payment.method) {
            return Err(
                not_in("method_not_allowed", &payment.method, "an allowed method").at("payment.method")
            );
        }
        Ok(())
    }

    /// `received` is the record's own timestamp; where it has none, nothing is in the future.
    #[inline]
    fn check_time(&self, purchase: &Purchase<'_>, received: Option<i64>) -> Result<(), Rejection> {
        purchase.timestamp_column()?;
        purchase.session_date_column()?;
        let latest = received.map(|received| {
            received.saturating_add(1000 * i64::from(self.settings.future_tolerance_seconds))
        });
        if latest.is_some_and(|latest| purchase.timestamp.milliseconds() > latest) {
            let reason = format!(
                "{} is more than {} s after the record itself",
                purchase.timestamp, self.settings.future_tolerance_seconds
            );
            return Err(Rejection::new("timestamp_in_future", reason).at("timestamp"));
        }
        let session = purchase.training.session_date;
        if session.days() < purchase.timestamp.days() {
            let reason =
                format!("the session, {session}, is before the day of purchase, {}", purchase.timestamp);
            return Err(Rejection::new("session_before_purchase", reason).at("training.session_date"));
        }
        Ok(())
    }
}

#[inline]
fn listed(values: &[String], value: &str) -> bool {
    values.iter().any(|listed| listed == value)
}

#[cold]
fn not_in(code: &'static str, value: &str, what: &str) -> Rejection {
    Rejection::new(code, format!("`{}` is not {what}", value.escape_debug()))
}
