//! Times the steps with criterion: `bench/micro/run --time`.

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    for step in outrigger_micro::steps() {
        let mut work = outrigger_micro::prepare(step.name);
        criterion.bench_function(step.name, |bencher| bencher.iter(&mut work));
    }
    criterion.final_summary();
}
