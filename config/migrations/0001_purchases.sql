-- Purchases of trainings, one row a purchase, filled by the pipeline `purchases`.
--
-- Where the types differ from the obvious ones:
--   * timestamp is DateTime64(3, 'UTC'): purchases come with milliseconds, two of one second keep their
--     order, and the time shown does not depend on the server's time zone.
--   * LowCardinality for what has few different values (types, categories, methods, statuses, currencies,
--     topics, revisions): stored as a small number with a dictionary, several times smaller and faster to
--     group by. Not for ids and titles, which are too many for a dictionary to pay.
--   * Money is UInt32 cents: exact, no rounding, up to 42 million.
--   * created_at is filled by ClickHouse, so it says when the row arrived, not when a host mapped it.
--
-- _topic, _partition, _offset and _revision say which record a row came from, and which revision of the
-- rules passed it. Sluice fills them, and asks them for the offsets that the table holds.
--
-- The deduplication window is how many INSERTs the table remembers by their token. A batch that is sent
-- again after a lost answer is recognised as long as fewer than that many came between. A table without a
-- window (0 is the default) would take such rows twice.
CREATE TABLE IF NOT EXISTS purchases
(
    purchase_id String,
    user_id UInt64,
    trainer_id UInt64,
    timestamp DateTime64(3, 'UTC'),
    training_type LowCardinality(String),
    training_id UInt64,
    training_title String,
    training_category LowCardinality(String),
    price_cents UInt32,
    discount_cents UInt32,
    session_date Date,
    payment_method LowCardinality(String),
    payment_status LowCardinality(String),
    payment_amount_cents UInt32,
    payment_currency LowCardinality(String),
    created_at DateTime('UTC') DEFAULT now(),
    _topic LowCardinality(String),
    _partition Int32,
    _offset Int64,
    _revision LowCardinality(String),
    -- Asking for a range of offsets reads only the parts that have some of it.
    INDEX offsets _offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
ORDER BY (timestamp, user_id)
SETTINGS non_replicated_deduplication_window = 10000;
