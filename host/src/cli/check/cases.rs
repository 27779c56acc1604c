//! Golden cases, as a host would run them before it takes a module.

use crate::domain::verdict::Stage;
use crate::pipeline::modules::CasesReport;
use crate::wasm::{CasesFault, ChainSettings, GoldenCases, ModuleRegistry, WasmChain, cases_path};

/// How the cases of each module of `chain` came out that has some, by its name. Blocking.
pub(super) fn run(
    registry: &ModuleRegistry,
    settings: &ChainSettings,
    chain: &WasmChain,
) -> Vec<(String, Result<CasesReport, CasesFault>)> {
    let files = settings.folder().files;
    let path = |stage: Stage, name: &str| {
        files.iter().find(|file| file.stage == stage && file.name == name && !file.is_shadow)
    };
    let mut outcomes = Vec::new();
    for module in chain.loaded() {
        let identity = module.identity();
        let Some(file) = path(identity.stage, &identity.name) else { continue };
        let cases = match GoldenCases::read(&cases_path(&file.path)) {
            Ok(None) => continue,
            Ok(Some(bytes)) => GoldenCases::parse(&bytes),
            Err(fault) => Err(fault),
        };
        let report = cases.map(|cases| cases.run(&registry.single(module.clone())));
        outcomes.push((identity.name.to_string(), report));
    }
    outcomes
}
