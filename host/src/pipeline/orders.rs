//! Orders: from whoever asks about a module, or tells, to the pipeline that has it, and the answer back.
//!
//! State: for each pipeline what it says of its modules and where its orders go, and counters. Invariants:
//! - nobody waits longer than the patience that it was made with;
//! - a request that is given up before it is begun is never begun: who answers looks whether somebody waits.

use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::{mpsc, oneshot, watch};

use super::modules::{
    ModuleAction, ModuleEvent, ModuleOrder, ModuleReport, ModuleRequest, OrderError, ShadowReport,
};

/// Longest wait for the answer to an order: shorter than what HTTP clients and proxies wait.
pub const ORDER_PATIENCE: Duration = Duration::from_secs(15);

/// Orders that may wait for a pipeline that carries out another.
pub const WAITING_ORDERS: usize = 16;

/// The modules of one pipeline, as others see them.
#[derive(Clone, Debug)]
pub struct PipelineModules {
    /// Name of the pipeline.
    pub pipeline: String,
    /// What it says of them; empty until it has looked at them for the first time.
    pub reports: watch::Receiver<Vec<ModuleReport>>,
    /// Where orders go.
    pub orders: mpsc::Sender<ModuleOrder>,
}

/// Which module is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleAddress {
    /// Pipeline; may be left out where only one pipeline has a module of the name.
    pub pipeline: Option<String>,
    /// File name without `.wasm`.
    pub name: String,
}

/// Orders by what became of them.
#[derive(Clone, Debug)]
pub struct OrderMetrics {
    orders: IntCounterVec,
}

impl OrderMetrics {
    /// Registers them; all series of these pipelines begin at 0, so that the first order shows in a rate.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn register(registry: &Registry, pipelines: &[String]) -> prometheus::Result<Self> {
        let options = Opts::new(
            "sluice_module_orders_total",
            "Orders about modules (rollback, pin, release), by outcome: done, refused, or unavailable because \
             something was away or did not answer in time",
        );
        let orders = IntCounterVec::new(options, &["pipeline", "action", "outcome"])?;
        registry.register(Box::new(orders.clone()))?;
        for pipeline in pipelines {
            for action in ["rollback", "pin", "release"] {
                for outcome in ["done", "refused", "unavailable"] {
                    orders.with_label_values(&[pipeline.as_str(), action, outcome]);
                }
            }
        }
        Ok(Self { orders })
    }

    fn count(&self, pipeline: &str, action: &str, done: &Result<String, OrderError>) {
        let outcome = match done {
            Ok(_) => "done",
            Err(OrderError::NotFound(_) | OrderError::Refused(_)) => "refused",
            Err(OrderError::Unavailable(_)) => "unavailable",
        };
        self.orders.with_label_values(&[pipeline, action, outcome]).inc();
    }
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct ModuleControl {
    pipelines: Vec<PipelineModules>,
    metrics: OrderMetrics,
    patience: Duration,
}

impl ModuleControl {
    /// Of these pipelines; answers are waited for that long ([`ORDER_PATIENCE`]).
    pub fn new(pipelines: Vec<PipelineModules>, metrics: OrderMetrics, patience: Duration) -> Self {
        Self { pipelines, metrics, patience }
    }

    /// What a pipeline (or each of them) says of its modules.
    ///
    /// # Errors
    /// When there is no such pipeline.
    pub fn reports(&self, pipeline: Option<&str>) -> Result<Vec<ModuleReport>, OrderError> {
        let known = match pipeline {
            Some(name) => std::slice::from_ref(self.pipeline(name)?),
            None => &self.pipelines,
        };
        Ok(known.iter().flat_map(|known| known.reports.borrow().clone()).collect())
    }

    /// What is said of a module, and of its shadow, in each pipeline that has one of the name.
    ///
    /// # Errors
    /// When none has.
    pub fn reports_of(&self, module: &ModuleAddress) -> Result<Vec<ModuleReport>, OrderError> {
        let reports: Vec<_> = self
            .reports(module.pipeline.as_deref())?
            .into_iter()
            .filter(|report| report.name == module.name)
            .collect();
        if reports.is_empty() {
            return Err(OrderError::NotFound(format!(
                "there is no module `{}`{}",
                module.name,
                self.known()
            )));
        }
        Ok(reports)
    }

    /// Has an action carried out; the answer says in a sentence what was done.
    ///
    /// # Errors
    /// Why it was not, or is not known to be.
    pub async fn act(
        &self,
        module: &ModuleAddress,
        action: ModuleAction,
        by: String,
        reason: String,
    ) -> Result<String, OrderError> {
        let pipeline = self.resolve(module)?;
        let word = action.as_str();
        let asked = self.ask(pipeline, module, |answer| ModuleRequest::Act { action, by, reason, answer });
        let done = asked.await.unwrap_or_else(|why| {
            let after = match why {
                NoAnswer::Late => {
                    "one that was begun by then is carried out all the same: look at the module before you \
                     order again"
                }
                NoAnswer::Never => "nothing was changed, unless its history says so",
            };
            Err(OrderError::Unavailable(format!("{}; {after}", why.text(&pipeline.pipeline, self.patience))))
        });
        self.metrics.count(&pipeline.pipeline, word, &done);
        done
    }

    /// What happened to a module, newest first, at most `limit` events; and in which pipeline.
    ///
    /// # Errors
    /// When it cannot be said.
    pub async fn history(
        &self,
        module: &ModuleAddress,
        limit: usize,
    ) -> Result<(String, Vec<ModuleEvent>), OrderError> {
        let pipeline = self.resolve(module)?;
        let asked = self.ask(pipeline, module, |answer| ModuleRequest::History { limit, answer });
        let events = self.answered(pipeline, asked.await)?;
        Ok((pipeline.pipeline.clone(), events))
    }

    /// How the shadow of a module compares; and in which pipeline.
    ///
    /// # Errors
    /// When there is none, or it cannot be said.
    pub async fn shadow(&self, module: &ModuleAddress) -> Result<(String, ShadowReport), OrderError> {
        let pipeline = self.resolve(module)?;
        let asked = self.ask(pipeline, module, |answer| ModuleRequest::Shadow { answer });
        let report = self.answered(pipeline, asked.await)?;
        Ok((pipeline.pipeline.clone(), report))
    }

    fn answered<T>(
        &self,
        pipeline: &PipelineModules,
        asked: Result<Result<T, OrderError>, NoAnswer>,
    ) -> Result<T, OrderError> {
        asked.unwrap_or_else(|why| Err(OrderError::Unavailable(why.text(&pipeline.pipeline, self.patience))))
    }

    fn pipeline(&self, name: &str) -> Result<&PipelineModules, OrderError> {
        self.pipelines.iter().find(|known| known.pipeline == name).ok_or_else(|| {
            let names: Vec<_> = self.pipelines.iter().map(|known| known.pipeline.as_str()).collect();
            OrderError::NotFound(format!("there is no pipeline `{name}`; there is {}", names.join(", ")))
        })
    }

    /// The pipeline that a module is of. One whose file is gone has a history all the same, but only
    /// its pipeline knows of it.
    fn resolve(&self, module: &ModuleAddress) -> Result<&PipelineModules, OrderError> {
        let pipeline = match (&module.pipeline, self.pipelines.as_slice()) {
            (Some(name), _) => self.pipeline(name)?,
            (None, [only]) => only,
            (None, several) => {
                let mut having = several
                    .iter()
                    .filter(|known| known.reports.borrow().iter().any(|report| report.name == module.name));
                match (having.next(), having.next()) {
                    (Some(one), None) => one,
                    (None, _) => {
                        return Err(OrderError::NotFound(format!(
                            "no pipeline has a module `{}`{}; if its file is gone, say which pipeline it was of",
                            module.name,
                            self.known()
                        )));
                    }
                    (Some(one), Some(other)) => {
                        let all = [one, other].into_iter().chain(having);
                        let names: Vec<_> = all.map(|known| known.pipeline.as_str()).collect();
                        return Err(OrderError::Refused(format!(
                            "several pipelines have a module `{}`: say which of {} is meant",
                            module.name,
                            names.join(", ")
                        )));
                    }
                }
            }
        };
        if pipeline.reports.borrow().is_empty() {
            return Err(OrderError::Unavailable(format!(
                "pipeline {} has not started yet; /ready says what it waits for",
                pipeline.pipeline
            )));
        }
        Ok(pipeline)
    }

    /// Names to choose from, as the end of a sentence.
    fn known(&self) -> String {
        let mut names: Vec<String> = self
            .pipelines
            .iter()
            .flat_map(|known| {
                known.reports.borrow().iter().map(|report| report.name.clone()).collect::<Vec<_>>()
            })
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) }
    }

    async fn ask<T>(
        &self,
        pipeline: &PipelineModules,
        module: &ModuleAddress,
        request: impl FnOnce(oneshot::Sender<T>) -> ModuleRequest,
    ) -> Result<T, NoAnswer> {
        let (sender, answer) = oneshot::channel();
        let order = ModuleOrder { module: module.name.clone(), request: request(sender) };
        let asked = async {
            pipeline.orders.send(order).await.map_err(|_| NoAnswer::Never)?;
            answer.await.map_err(|_| NoAnswer::Never)
        };
        tokio::time::timeout(self.patience, asked).await.unwrap_or(Err(NoAnswer::Late))
    }
}

/// Why a request has no answer.
enum NoAnswer {
    /// Nobody answers any more.
    Never,
    /// Nobody answered in time.
    Late,
}

impl NoAnswer {
    fn text(&self, pipeline: &str, patience: Duration) -> String {
        match self {
            Self::Never => {
                format!("pipeline {pipeline} does not follow its modules any more: Sluice is shutting down")
            }
            Self::Late => format!(
                "pipeline {pipeline} did not answer within {}: it is busy with its modules, or ClickHouse does not \
                 answer it",
                humantime::format_duration(patience)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::Stage;
    use crate::pipeline::modules::ModuleState;

    fn report(pipeline: &str, name: &str) -> ModuleReport {
        ModuleReport {
            pipeline: pipeline.into(),
            name: name.into(),
            stage: Stage::Validate,
            file: format!("{name}.wasm"),
            is_shadow: false,
            state: ModuleState::Live,
            live: None,
            found: None,
            cases: None,
            problem: None,
        }
    }

    /// Pipelines with modules of these names, and what receives their orders.
    fn control(pipelines: &[(&str, &[&str])]) -> (ModuleControl, Vec<mpsc::Receiver<ModuleOrder>>, Registry) {
        let registry = Registry::new();
        let names: Vec<_> = pipelines.iter().map(|(pipeline, _)| (*pipeline).to_owned()).collect();
        let metrics = OrderMetrics::register(&registry, &names).expect("registered");
        let (known, heard) = pipelines
            .iter()
            .map(|(pipeline, modules)| {
                let reports = modules.iter().map(|name| report(pipeline, name)).collect();
                let (orders, heard) = mpsc::channel(WAITING_ORDERS);
                let reports = watch::channel(reports).1;
                (PipelineModules { pipeline: (*pipeline).to_owned(), reports, orders }, heard)
            })
            .unzip();
        (ModuleControl::new(known, metrics, ORDER_PATIENCE), heard, registry)
    }

    fn address(pipeline: Option<&str>, name: &str) -> ModuleAddress {
        ModuleAddress { pipeline: pipeline.map(str::to_owned), name: name.to_owned() }
    }

    async fn pin(control: &ModuleControl, module: &ModuleAddress) -> Result<String, OrderError> {
        control.act(module, ModuleAction::Pin { to: None }, "eve".into(), "because".into()).await
    }

    fn count(registry: &Registry, outcome: &str) -> f64 {
        let families = registry.gather();
        let series = families.iter().flat_map(|family| family.get_metric());
        let labelled =
            series.filter(|metric| metric.get_label().iter().any(|label| label.value() == outcome));
        labelled.map(|metric| metric.get_counter().get_value()).sum()
    }

    #[tokio::test]
    async fn an_order_goes_to_the_one_pipeline_that_has_the_module() {
        let (control, mut heard, registry) = control(&[("a", &["rules", "rows"]), ("b", &["rows"])]);
        let rules = address(None, "rules");
        let (done, ()) = tokio::join!(pin(&control, &rules), async {
            let order = heard[0].recv().await.expect("an order");
            assert_eq!(order.module, "rules");
            let ModuleRequest::Act { by, reason, answer, .. } = order.request else { panic!("an action") };
            assert_eq!((by.as_str(), reason.as_str()), ("eve", "because"));
            answer.send(Ok("done".into())).expect("somebody waits");
        });
        assert_eq!(done, Ok("done".into()));
        assert_eq!((count(&registry, "done"), count(&registry, "refused")), (1.0, 0.0));

        let text = |error: OrderError| error.to_string();
        let several = pin(&control, &address(None, "rows")).await.expect_err("two have it");
        assert!(matches!(&several, OrderError::Refused(why) if why.contains("which of a, b")), "{several}");
        let none = text(pin(&control, &address(None, "rule")).await.expect_err("none has it"));
        assert!(none.contains("there is rows, rules") && none.contains("which pipeline"), "{none}");
        let pipeline = text(pin(&control, &address(Some("c"), "rows")).await.expect_err("no such pipeline"));
        assert_eq!(pipeline, "there is no pipeline `c`; there is a, b");
        assert!(heard.iter_mut().all(|heard| heard.try_recv().is_err()), "nothing was ordered by mistake");
        assert_eq!(control.reports_of(&address(None, "rows")).expect("two").len(), 2);
        assert_eq!(control.reports(Some("b")).expect("one").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_that_nobody_carries_out_ends_and_is_not_begun_later() {
        let (control, mut heard, registry) = control(&[("a", &["rules"])]);
        let module = address(None, "rules");
        let late = pin(&control, &module).await.expect_err("nobody answers");
        assert!(matches!(&late, OrderError::Unavailable(why) if why.contains("within 15s")), "{late}");
        let order = heard[0].try_recv().expect("it waits there");
        assert!(order.request.is_given_up());

        // A queue that is full, too.
        let full = futures::future::join_all((0..=WAITING_ORDERS).map(|_| pin(&control, &module))).await;
        assert!(full.iter().all(|done| matches!(done, Err(OrderError::Unavailable(_)))));

        drop(heard);
        let never = pin(&control, &module).await.expect_err("nobody is there");
        assert!(matches!(&never, OrderError::Unavailable(why) if why.contains("shutting down")), "{never}");
        assert_eq!(count(&registry, "unavailable"), 3.0 + WAITING_ORDERS as f64);
    }

    #[tokio::test]
    async fn a_pipeline_that_has_not_started_says_so_at_once() {
        let (control, _heard, _) = control(&[("a", &[])]);
        let early = control.history(&address(None, "rules"), 5).await.expect_err("too early");
        assert!(matches!(&early, OrderError::Unavailable(why) if why.contains("/ready")), "{early}");
    }
}
