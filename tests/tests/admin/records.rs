//! Records that are erased, through lakectl.

use super::check_every_form;
use super::stage::{Stage, json, lakectl};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lakectl_erases_and_allows_records_in_every_form() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "admin", None);
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 3).await;
    stage.quarantine("demo", "id-1").await;
    let admin = stage.context("ann", &writer, &token);
    assert_eq!(lakectl(&admin, "record erase demo id-1 --kind case").code, Some(64), "nobody can be asked");
    let ids = stage.path("ids");
    std::fs::write(&ids, "id-1\n").unwrap();
    let erased = json(&admin, &format!("record erase demo --ids-file {} --kind case --yes", ids.display()));
    let figure = |name: &str| erased["result"][name].as_i64().unwrap();
    assert_eq!((figure("rows"), figure("quarantined"), figure("done")), (1, 1, 1), "{erased}");
    assert!(!erased.to_string().contains("id-1"), "{erased}");
    let hash = json(&admin, "record erased")[0]["id_hash"].as_str().unwrap().to_owned();
    let commands = [
        ("record erase demo id-2 --kind case --dry-run".to_owned(), false, "-"),
        ("record erased --domain demo".to_owned(), true, hash.as_str()),
        ("record trace id-1 --domain demo".to_owned(), false, "id-1"),
    ];
    check_every_form(&admin, &token, &commands);
    assert_eq!(json(&admin, "record trace id-1")["state"], "erased");
    assert!(
        !json(&admin, "lake audit").to_string().contains("id-1")
            && !json(&admin, "operation list").to_string().contains("id-1")
    );
    let stale = lakectl(&admin, "record erase demo id-2 --kind case --plan 0123");
    assert!(stale.code == Some(1) && stale.stdout.contains("stale"), "{stale:?}");
    assert_eq!(json(&admin, &format!("record allow demo --hash {hash} --kind case"))["result"]["allowed"], 1);
    assert_eq!(lakectl(&admin, "record allow demo id-1 --kind case").code, Some(1), "it is not kept out any more");
    writer.running.end().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_erase_is_told_by_the_code() {
    let mut stage = Stage::start().await;
    let tokens = ["admin", "operator", "viewer"].map(|role| stage.token(role, role, None));
    let other = stage.token("other", "admin", Some("other"));
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 1).await;
    let [admin, operator, viewer] =
        [0, 1, 2].map(|at| stage.context(["admin", "operator", "viewer"][at], &writer, &tokens[at]));
    let other = stage.context("other", &writer, &other);
    for (contexts, command, code) in [
        (&admin, "record erase demo --kind case", 64),
        (&admin, "record erase demo id-0", 64),
        (&admin, "record allow demo --kind case", 64),
        (&admin, "record allow demo --hash nonsense --kind case", 64),
        (&operator, "record erase demo id-0 --kind case --dry-run", 77),
        (&operator, "record allow demo id-0 --kind case", 77),
        (&viewer, "record erased", 0),
        (&other, "record erase demo id-0 --kind case --dry-run", 66),
        (&other, "record allow demo id-0 --kind case", 66),
    ] {
        let outcome = lakectl(contexts, command);
        assert_eq!(outcome.code, Some(code), "{command}: {outcome:?}");
        assert!(!outcome.stderr.contains("lake_") && (code == 0 || !outcome.stderr.is_empty()), "{outcome:?}");
    }
    json(&admin, "record erase demo id-0 --kind case --yes");
    assert_eq!(json(&other, "record erased").as_array().unwrap().len(), 0, "of another project nothing is seen");
    writer.running.end().unwrap();
}
