//! Counts instructions under valgrind's callgrind. `bench/micro/run` calls it and makes a table.

use gungraun::{library_benchmark, library_benchmark_group, main};
use outrigger_micro::{Work, names, prepare, repeat};

#[library_benchmark]
#[benches::step(iter = names(), setup = prepare)]
fn instructions(work: Work) -> Work {
    repeat(work)
}

library_benchmark_group!(name = all, benchmarks = instructions);

main!(library_benchmark_groups = all);
