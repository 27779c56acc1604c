//! Interface: the names that a module imports and exports, for people who look at it.

use wasmtime::component::Component;

use super::module::{Module, Program};

/// What a component asks for and offers, by name and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// What it asks for: functions and the like. Names for types alone, which every module of the contract
    /// has, are not among them.
    pub imports: Vec<String>,
    /// What it offers.
    pub exports: Vec<String>,
}

impl Module {
    /// Its names, as they stand in the component.
    pub fn interface(&self) -> Interface {
        let (component, engine): (&Component, _) = match self.program() {
            Program::Validator(pre) => (pre.instance_pre().component(), pre.engine()),
            Program::Mapper(pre) => (pre.instance_pre().component(), pre.engine()),
        };
        let component_type = component.component_type();
        let imports = component_type
            .imports(engine)
            .filter(|(_, import)| !super::module::is_types_only(engine, &import.ty));
        Interface {
            imports: imports.map(|(name, _)| name.to_owned()).collect(),
            exports: component_type.exports(engine).map(|(name, _)| name.to_owned()).collect(),
        }
    }
}
