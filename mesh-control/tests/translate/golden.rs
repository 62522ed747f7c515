//! Every case against its file in `testdata/translate`. `INSTA_UPDATE=always` writes them anew.

use mesh_control::translate::{Request, translate};

use crate::cases::{self, Case};
use crate::dump::dump;

#[test]
fn every_case_gives_its_golden_file() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/translate"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _guard = settings.bind_to_scope();
    for Case { name, kind, resource, world, client } in cases::all() {
        let request = Request { kind, name: &resource };
        let text = match translate(request, &client, &world) {
            Ok(Some(any)) => {
                assert_eq!(any.type_url, kind.url(), "{name}");
                // The list of all names is text.
                if resource == "*" { String::from_utf8(any.value).unwrap() + "\n" } else { dump(&any) }
            }
            Ok(None) => "removed\n".to_owned(),
            Err(error) => format!("error: {error}\n"),
        };
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn names_of_cases_are_unique() {
    let mut names: Vec<_> = cases::all().into_iter().map(|case| case.name).collect();
    let before = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), before);
}
