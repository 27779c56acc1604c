//! A table that changes under a running pipeline: it waits, says why, and goes on when the table is mended.

use crate::stage::Stage;

#[test]
fn a_column_that_goes_or_changes_its_type_is_waited_for_by_name() {
    let stage = Stage::new("schema", 1, "");
    let host = stage.start(&stage.host("only"));
    stage.send(&[(0, "ab")]);
    host.wait_until("everything is settled", |_| stage.is_settled());
    let faults = [
        ("No such column text", vec!["DROP COLUMN text"], vec!["ADD COLUMN text String"]),
        // The bytes of a row do not read as a list of a hundred texts.
        (
            "column `text` is Array(String) in the table",
            vec!["DROP COLUMN text", "ADD COLUMN text Array(String)"],
            vec!["DROP COLUMN text", "ADD COLUMN text String"],
        ),
        // The bytes of a row would do: a letter after its length is two bytes.
        (
            "column `text` is FixedString(2) in the table",
            vec!["MODIFY COLUMN text FixedString(2)"],
            vec!["MODIFY COLUMN text String"],
        ),
    ];
    for (round, (reason, damage, cure)) in (1..).zip(faults) {
        let alter = |change: &&str| stage.execute(&format!("ALTER TABLE schema.texts {change}"));
        damage.iter().for_each(alter);
        stage.send(&[(0, "d")]);
        host.wait_until("it says which column is at fault", |host| {
            let (code, body) = host.get("/ready");
            code == 503 && body.contains(reason) && body.contains("the rows wait")
        });
        // Rules are rules: what they reject waits behind it, and is not lost either.
        stage.send(&[(0, "xe")]);
        let attempts = || host.metric("sluice_retries_total{operation=\"insert\",pipeline=\"schema\"}");
        let before = attempts();
        host.wait_until("it has tried again", |_| attempts() >= before + 2.0);
        assert_eq!((stage.rows(), stage.letters()), (2 * round, round as usize - 1));
        cure.iter().for_each(alter);
        host.wait_until("everything is settled", |_| stage.is_settled());
        host.wait_until("it is ready again", |host| host.get("/ready").0 == 200);
    }
    stage.finish(host);
    let endings = stage.endings();
    for (offset, ending) in &endings {
        match offset.1 {
            3 | 6 | 9 => assert_eq!(ending.letter(), ("rejected", "no_thanks", Some("x"))),
            _ => drop(ending.revision().to_owned()),
        }
    }
    assert_eq!(endings.len(), 11);
}
