//! HTML: the frame that all pages share. They load nothing and run nothing, and follow the browser's choice of
//! light or dark.

/// A page; one that shows what changes is loaded again after so many seconds.
pub(super) fn document(title: &str, refresh: Option<u8>, body: &str) -> String {
    let refresh = refresh
        .map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n"))
        .unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{refresh}\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n{body}</html>\n",
        title = escape(title),
    )
}

/// A path, a reason or a name may hold anything, so nothing of it reaches a browser as markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

const STYLE: &str = "\
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; --line: #ccc; --quiet: #595959;
  --good: #1a6b32; --bad: #b3261e; --odd: #7a4b00 }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --quiet: #aaa; --good: #7fd49a; --bad: #ff9c94; --odd: #ffc46b } }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h2 { margin-top: 2rem } h3 { margin: 0; font-size: 1.1rem }
dt { font-weight: 600; margin-top: .5rem } dd { margin-left: 0 }
article { border: 1px solid var(--line); border-left: .3rem solid var(--line); border-radius: .3rem;
  margin: 1rem 0; padding: .7rem 1rem }
article.good { border-left-color: var(--good) } article.bad { border-left-color: var(--bad) }
article.odd { border-left-color: var(--odd) }
header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline }
header strong.good { color: var(--good) } header strong.bad { color: var(--bad) }
header strong.odd { color: var(--odd) }
.quiet { color: var(--quiet); font-weight: 400 }
article dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .4rem 0 }
article dt { margin: 0 }
ul { margin: .3rem 0; padding-left: 1.2rem }
code { font-size: .95em }
nav a { margin-right: 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
time, code { white-space: nowrap } dd code { white-space: normal }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word }
@media (max-width: 34rem) {
  article dl { grid-template-columns: 1fr } article dd { margin-bottom: .4rem }
  table, tbody, tr, td { display: block } thead { display: none }
  td { border: 0; padding: 0 } td:empty { display: none } tr { border-bottom: 1px solid var(--line); padding: .5rem 0 }
  td::before { content: attr(data-label) ' '; color: var(--quiet) } }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_stays_text() {
        assert_eq!(escape(r#"<a href="x" id='y'>&"#), "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;");
        assert!(document("<x>", Some(5), "").contains("<title>&lt;x&gt;</title>"));
    }
}
