//! Orders about modules on the real parts: what operators decide holds over new files, restarts and hosts.

mod support;

use serde_json::{Value, json};
use support::deployment::{Deployment, RULES, RULES_STATUS, live, parts};
use support::sluice::{Configuration, Sluice};

const TOKEN: &str = "a token of 16 bytes or more";
const NAME: &str = "/modules/purchase-rules";

/// What a host says of a module; nothing before it has looked at it.
fn module(sluice: &Sluice, name: &str) -> Value {
    let (_, body) = sluice.get(&format!("/modules/{name}"));
    let body: Value = serde_json::from_str(&body).expect("JSON");
    body["modules"][0].clone()
}

fn rules(sluice: &Sluice) -> (String, String) {
    let module = module(sluice, "purchase-rules");
    (module["state"].as_str().unwrap_or_default().to_owned(), live(&module))
}

#[track_caller]
fn wait_for(sluice: &Sluice, state: &str, revision: &str) {
    sluice.wait_until(&format!("the rules are {state} at {revision}"), |sluice| {
        rules(sluice) == (state.to_owned(), revision.to_owned())
    });
}

/// An order; what it answered.
fn order(sluice: &Sluice, action: &str, to: Option<&str>) -> (u16, String) {
    let mut body = json!({ "by": "eve@desk", "reason": format!("to {action}") });
    if let Some(to) = to {
        body["to"] = to.into();
    }
    let (code, said) = sluice.post(&format!("{NAME}/{action}"), &token(), &body);
    let said = said["done"].as_str().or(said["error"].as_str()).expect("a sentence").to_owned();
    (code, said)
}

fn token() -> String {
    TOKEN.replace(' ', "-")
}

#[track_caller]
fn done(sluice: &Sluice, action: &str, to: Option<&str>, revision: &str) {
    let expected = format!("module purchase-rules runs revision {revision}");
    assert_eq!(order(sluice, action, to), (200, expected));
}

#[track_caller]
fn refused(sluice: &Sluice, action: &str, to: Option<&str>, code: u16, why: &str) {
    let (answered, said) = order(sluice, action, to);
    assert!(answered == code && said.contains(why), "{answered}: {said}");
}

/// Waits for a line of the log with all of this in it.
#[track_caller]
fn logged(sluice: &Sluice, words: &[&str]) {
    sluice.wait_until(&format!("the log says {words:?}"), |sluice| {
        sluice.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
    });
}

/// Copies another revision of the rules, and waits until it is live.
fn deploy(deployment: &Deployment, sluice: &Sluice, number: u8) -> String {
    let before = rules(sluice).1;
    deployment.copy(RULES, &deployment.rules(number));
    sluice.wait_until("the new file is live", |sluice| {
        let (state, revision) = rules(sluice);
        state == "live" && revision != before
    });
    rules(sluice).1
}

/// `sluice module ARGUMENTS` against a host: exit code, standard output and error.
fn command(host: &Configuration, sluice: &Sluice, arguments: &[&str]) -> (Option<i32>, String, String) {
    let ended = host
        .prepare(&[&["module"], arguments].concat())
        .env("SLUICE_ADMIN_URL", sluice.admin_url())
        .env("SLUICE_ADMIN_TOKEN", token())
        .env("USER", "eve")
        .output()
        .expect("the sluice program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

fn events(sluice: &Sluice, name: &str) -> Vec<Value> {
    let (code, body) = sluice.get(&format!("/modules/{name}/history"));
    assert_eq!(code, 200, "{body}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    body["events"].as_array().expect("a list").clone()
}

fn configuration(
    deployment: &Deployment,
    kafka: &support::kafka::ApacheKafka,
    clickhouse: &support::clickhouse_server::ClickHouse,
) -> Configuration {
    deployment.configuration(kafka, clickhouse).set("ADMIN__TOKEN", &token())
}

#[test]
fn a_decision_holds_over_files_restarts_and_hosts() {
    let (kafka, clickhouse) = parts();
    let deployment = Deployment::new();
    let host = |name: &str| configuration(&deployment, &kafka, &clickhouse).set("KAFKA__INSTANCE", name);
    let first = Sluice::start(&host("first"));
    deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
    let zero = rules(&first).1;
    refused(&first, "rollback", None, 409, "or remove the file, which ends the rule");
    refused(&first, "release", None, 409, "neither rolled back nor pinned");
    let one = deploy(&deployment, &first, 1);

    // A rollback, which a host that starts later finds as well.
    done(&first, "rollback", None, &zero);
    wait_for(&first, "rolled-back", &zero);
    let told = module(&first, "purchase-rules");
    assert_eq!(told["found"]["revision"], one.as_str());
    let why = told["problem"]["reason"].as_str().expect("a reason");
    assert!(why.contains("by eve@desk") && why.contains("to rollback") && why.contains("release"), "{why}");
    refused(&first, "rollback", None, 409, "rolled back or pinned already");
    refused(&first, "rollback", Some(&one), 409, "holds; release it, since another is held");
    refused(&first, "pin", Some("ffffffffffff"), 404, "begins with ffffffffffff");
    let second = Sluice::start(&host("second"));
    wait_for(&second, "rolled-back", &zero);

    // Whichever host is asked, the other follows.
    done(&second, "release", None, &one);
    wait_for(&second, "live", &one);
    wait_for(&first, "live", &one);
    done(&first, "rollback", Some(&zero[..4]), &zero);
    wait_for(&second, "rolled-back", &zero);

    // Another file ends a rollback, and what it goes back to next is what ran before.
    let two = deploy(&deployment, &first, 2);
    wait_for(&second, "live", &two);
    done(&first, "rollback", None, &zero);
    done(&first, "release", None, &two);

    // A pin, on the contrary, stays, and so does it over a restart of everybody.
    done(&first, "pin", Some(&one), &one);
    deployment.copy(RULES, &deployment.rules(3));
    first.wait_until("the file is seen", |first| {
        let told = module(first, "purchase-rules");
        told["state"] == "pinned" && told["found"]["revision"] != two.as_str()
    });
    assert_eq!(rules(&first).1, one);
    let three = module(&first, "purchase-rules")["found"]["revision"].as_str().expect("read").to_owned();
    assert_eq!((first.stop(), second.stop()), (Some(0), Some(0)));
    let first = Sluice::start(&host("first"));
    wait_for(&first, "pinned", &one);

    // All of it is in the history, and there is a metric for what this process was ordered.
    let told: Vec<_> = events(&first, "purchase-rules")
        .iter()
        .filter(|event| event["by"] == "eve@desk")
        .map(|event| event["event"].as_str().expect("a word").to_owned())
        .collect();
    assert_eq!(told, ["pinned", "released", "rolled-back", "rolled-back", "released", "rolled-back"]);
    let all = events(&first, "purchase-rules");
    let newest = all.iter().find(|event| event["by"] == "eve@desk").expect("the pin");
    assert!(newest["revision"].as_str().is_some_and(|revision| revision.starts_with(&one)), "{newest}");
    done(&first, "release", None, &three);
    wait_for(&first, "live", &three);
    let done = r#"sluice_module_orders_total{action="release",outcome="done",pipeline="purchases"}"#;
    assert_eq!(first.metric(done), 1.0);
    assert_eq!(first.stop(), Some(0));
}

#[test]
fn what_cannot_be_kept_or_cannot_run_changes_nothing() {
    let (kafka, mut clickhouse) = parts();
    let deployment = Deployment::new();
    let sluice = Sluice::start(&configuration(&deployment, &kafka, &clickhouse));
    deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
    let zero = rules(&sluice).1;
    let one = deploy(&deployment, &sluice, 1);
    // Back and forth faster than this host looks at what others decide, and all of it is kept.
    assert_eq!(deploy(&deployment, &sluice, 0), zero);
    assert_eq!(deploy(&deployment, &sluice, 1), one);
    let told: Vec<_> = events(&sluice, "purchase-rules")
        .iter()
        .map(|event| event["revision"].as_str().expect("a revision")[..12].to_owned())
        .collect();
    assert_eq!(told, [&one, &zero, &one, &zero].map(String::as_str));

    // A revision that somebody spoiled.
    clickhouse.execute(&format!(
        "INSERT INTO sluice_revisions (revision, stage, name, bytes, settings) \
         VALUES ('{}', 'validate', 'purchase-rules', 'not a module', '{{}}')",
        "ee".repeat(32)
    ));
    refused(&sluice, "pin", Some("eeeeeeee"), 409, "nothing was changed");

    // A rule whose file is gone has a history, and nothing runs in its place.
    deployment.copy("validators/another.wasm", &deployment.rules(9));
    sluice.wait_until("it is live", |sluice| module(sluice, "another")["state"] == "live");
    std::fs::remove_file(deployment.path("validators/another.wasm")).unwrap();
    sluice.wait_until("it is gone", |sluice| sluice.get("/modules/another").0 == 404);
    logged(&sluice, &["module is live", "another"]);
    logged(&sluice, &["module removed", "another"]);
    let told: Vec<_> = events(&sluice, "another").iter().map(|event| event["event"].clone()).collect();
    assert_eq!(told, ["removed", "live"]);
    let (code, said) = sluice.post("/modules/another/pin", &token(), &json!({ "by": "eve", "to": zero }));
    assert!(code == 409 && said["error"].as_str().is_some_and(|why| why.contains("is gone")), "{said}");

    clickhouse.kill();
    for action in ["rollback", "pin", "release"] {
        let (code, said) = order(&sluice, action, None);
        assert_eq!(code, 503, "{said}");
    }
    assert_eq!(rules(&sluice), ("live".to_owned(), one.clone()));
    let unavailable =
        r#"sluice_module_orders_total{action="pin",outcome="unavailable",pipeline="purchases"}"#;
    assert_eq!(sluice.metric(unavailable), 1.0);
    clickhouse.restart();
    assert!(
        events(&sluice, "purchase-rules").iter().all(|event| event["event"] == "live"),
        "{:?}",
        events(&sluice, "purchase-rules")
    );
    done(&sluice, "pin", None, &one);
    wait_for(&sluice, "pinned", &one);

    // A file that does not pass: a pin hides it, a release says so, and a rollback leads away from it.
    deployment.copy(RULES, b"not a module");
    sluice.wait_until("the file is seen", |sluice| {
        module(sluice, "purchase-rules")["found"]["revision"] != one.as_str()
    });
    assert_eq!(rules(&sluice), ("pinned".to_owned(), one.clone()));
    let (code, said) = order(&sluice, "release", None);
    let goes_on = format!("goes on with revision {one}, for its file is not WebAssembly");
    assert!(code == 200 && said.contains(&goes_on), "{code}: {said}");
    wait_for(&sluice, "refused", &one);
    done(&sluice, "rollback", None, &zero);
    wait_for(&sluice, "rolled-back", &zero);

    // Where that is to lead to a file that is refused, releasing it would not help.
    deployment.copy(RULES, &deployment.rules(1));
    wait_for(&sluice, "live", &one);
    deployment.copy("validators/purchase-rules.cases.jsonl", br#"{"payload": "", "accepted": true}"#);
    sluice.wait_until("the cases are run", |sluice| {
        module(sluice, "purchase-rules")["problem"]["gate"] == "cases"
    });
    deployment.copy(RULES, &deployment.rules(0));
    wait_for(&sluice, "refused", &one);
    logged(&sluice, &["module refused", "purchase-rules", "cases"]);
    refused(&sluice, "rollback", None, 409, "holds; it is not taken, for it fails 1 of its 1");
    assert_eq!(sluice.stop(), Some(0));
}

#[test]
fn commands_show_and_order_the_same() {
    let (kafka, clickhouse) = parts();
    let deployment = Deployment::new();
    let host = configuration(&deployment, &kafka, &clickhouse);
    let sluice = Sluice::start(&host);
    deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
    let zero = rules(&sluice).1;
    let one = deploy(&deployment, &sluice, 1);
    let ask = |arguments: &[&str]| command(&host, &sluice, arguments);

    let (code, out, _) = ask(&["list"]);
    assert_eq!(code, Some(0));
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("PIPELINE   MODULE") && lines.len() == 3, "{out}");
    assert!(
        lines[1].contains("purchase-rules") && lines[1].contains(&one) && lines[1].contains("live"),
        "{out}"
    );
    assert_eq!(ask(&["status"]).0, Some(0));
    assert_eq!(ask(&["status", "purchase-rules", "--expect", &one]).0, Some(0));
    let (code, out, _) = ask(&["status", "purchase-rules", "--expect", &zero]);
    assert!(code == Some(1) && out.contains(&format!("{zero} does not judge records")), "{out}");
    let (code, _, said) = ask(&["status", "purchase-rule"]);
    assert!(code == Some(1) && said.contains("there is purchase-rows, purchase-rules"), "{said}");

    let (code, out, said) = ask(&["rollback", "purchase-rules", "--reason", "rejects every refund"]);
    assert_eq!(
        (code, out.trim_end()),
        (Some(0), &*format!("module purchase-rules runs revision {zero}")),
        "{said}"
    );
    let (code, out, _) = ask(&["status", "purchase-rules"]);
    assert_eq!(code, Some(1), "what the file holds does not judge records");
    assert!(out.contains("rolled-back") && out.contains("by eve@") && out.contains("every refund"), "{out}");
    let (code, out, _) = ask(&["status", "purchase-rules", "--json"]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &told["modules"][0]["state"]), (Some(1), &"rolled-back".into()));
    let (code, _, said) = ask(&["rollback", "purchase-rules"]);
    assert!(code == Some(1) && said.starts_with("refused: ") && said.contains("or release it"), "{said}");
    assert_eq!(ask(&["pin", "purchase-rules", "--to", &one, "--by", "the auditor"]).0, Some(0));
    wait_for(&sluice, "pinned", &one);
    assert_eq!(ask(&["release", "purchase-rules"]).0, Some(0));
    wait_for(&sluice, "live", &one);
    let (code, out, _) = ask(&["history", "purchase-rules", "-n", "1"]);
    assert!(code == Some(0) && out.lines().count() == 1, "{out}");
    let (_, out, _) = ask(&["history", "purchase-rules"]);
    let lines: Vec<_> = out.lines().filter(|line| !line.contains("  live  ")).collect();
    assert!(lines.len() == 3 && lines[0].contains("released") && lines[2].contains("rolled-back"), "{out}");
    assert!(
        lines[1].contains("pinned") && lines[1].contains("by the auditor") && lines[1].contains(&one),
        "{out}"
    );
    let (code, _, said) = ask(&["shadow", "purchase-rules"]);
    assert!(code == Some(1) && said.contains("purchase-rules.shadow.wasm"), "{said}");

    // What keeps a command from its work.
    let (code, _, said) = ask(&["release", "purchase-rules", "--token", "of somebody else"]);
    assert!(code == Some(2) && said.contains("SLUICE_ADMIN_TOKEN"), "{said}");
    let (code, _, said) = ask(&["list", "--admin", "http://127.0.0.1:1"]);
    assert!(code == Some(2) && said.contains("cannot reach") && said.contains("--admin"), "{said}");
    let (code, _, said) = ask(&["list", "--admin", &clickhouse.url()]);
    assert!(code == Some(2) && said.contains("not as Sluice does"), "{said}");
    let (code, _, said) = ask(&["list", "--admin", "127.0.0.1"]);
    assert!(code == Some(2) && said.contains("http://host:9464"), "{said}");
    // Without an address the configuration is asked, which has a port here that nobody knows.
    let mut unknown = host.prepare(&["module", "list"]);
    let said = unknown.env_remove("SLUICE_ADMIN_URL").output().expect("the sluice program runs").stderr;
    assert!(String::from_utf8_lossy(&said).contains("port 0"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(sluice.stop(), Some(0));
}
