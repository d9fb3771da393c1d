//! The load generator as a program: what it prints, writes, counts and exits with.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use outrigger_loadgen::origin::{Options, Origin};
use outrigger_loadgen::report::{self, Report};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-loadgen"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Runs with `--json`, expects success, and reads the report back.
fn report(arguments: &[&str]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let mut all = vec!["--quiet", "--json", path.to_str().unwrap()];
    all.extend_from_slice(arguments);
    let output = run(&all);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    report::read(&path).unwrap().remove(0)
}

fn origin() -> Origin {
    Origin::start(Options::default()).unwrap()
}

fn url(origin: &Origin, path: &str) -> String {
    format!("http://{}{path}", origin.address())
}

/// A target that does with each connection what it is told, each on its own thread.
fn target(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// Reads one head; false at the end. Nothing is pipelined here, so a head ends a read.
fn read_head(stream: &mut TcpStream) -> bool {
    let (mut head, mut buffer) = (Vec::new(), [0; 4_096]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => head.extend_from_slice(&buffer[..n]),
            _ => return false,
        }
    }
    true
}

/// A target that answers at once, except that it stalls once for a second, from `after` its first
/// request on; and the stall's true length in nanoseconds, for the hand-made calculation.
fn stalling(after: Duration) -> SocketAddr {
    let gate = Arc::new(RwLock::new(()));
    let begun = Arc::new(AtomicBool::new(false));
    target(move |mut stream| {
        let _ = stream.set_nodelay(true);
        while read_head(&mut stream) {
            if !begun.swap(true, Ordering::SeqCst) {
                let gate = gate.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    let _closed = gate.write().unwrap();
                    std::thread::sleep(Duration::from_secs(1));
                });
            }
            let open = gate.read().unwrap();
            drop(open);
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    })
}

/// The reason why this program is an open loop.
///
/// 1,000 requests a second for 4 s, and a stall of 1 s: the 1,000 requests that are due in it wait
/// for its rest, evenly from 1 s down to 0. So the share of requests that take longer than x is
/// (1 s - x) / 4 s: a tenth take over 600 ms, a hundredth over 960 ms. A noisy machine only makes
/// requests slower, so these are lower bounds; the number of slow ones bounds them from above.
#[test]
fn a_stall_shows_in_full() {
    let address = stalling(Duration::from_millis(1_500));
    let url = format!("http://{address}/");
    let report = report(&["-R", "1k", "-d", "4s", "-c", "4", "-t", "1", &url]);
    assert_eq!((report.sent, report.answered, report.failures.total()), (4_000, 4_000, 0));
    let over = |histogram: &hdrhistogram::Histogram<u64>, ms: u64| {
        histogram.count_between(ms * 1_000_000, u64::MAX)
    };
    for ms in [50, 200, 400, 600, 800, 900, 960] {
        let expected = 1_000 - ms;
        let seen = over(&report.corrected, ms);
        assert!(seen + 10 >= expected, "{seen} took over {ms} ms, {expected} must have");
        assert!(ms < 400 || seen <= expected + 400, "{seen} took over {ms} ms, not {expected}");
    }
    assert!(report.latency_ns.p90 >= 590_000_000, "{:?}", report.latency_ns);
    assert!(report.latency_ns.p99 >= 950_000_000, "{:?}", report.latency_ns);
    // Counted from the sending, only what each connection had under way was slow.
    let hidden = over(&report.service, 500);
    assert!((1..=8).contains(&hidden), "{hidden}");
    assert!(report.service_ns.p99 < 500_000_000, "{:?}", report.service_ns);
    assert!(report.waited >= 900, "{}", report.waited);
}

/// The same stall, as a closed loop sees it: the four requests that were under way, and nothing in any
/// percentile. h2load sees no more. (wrk 4 does not fit here: it adds the requests that it would have
/// sent at its mean pace, so its percentiles show a guess at the stall.)
#[test]
fn a_closed_loop_hides_the_stall() {
    let ours = {
        let url = format!("http://{}/", stalling(Duration::from_millis(1_000)));
        report(&["--closed", "-d", "3s", "-c", "4", "-t", "1", &url])
    };
    assert!(ours.latency_ns.max >= 900_000_000, "{:?}", ours.latency_ns);
    assert!(ours.latency_ns.p99 < 500_000_000, "{:?}", ours.latency_ns);
    let slow = ours.corrected.count_between(900_000_000, u64::MAX);
    assert!((1..=4).contains(&slow), "{slow}");

    let url = format!("http://{}/", stalling(Duration::from_millis(1_000)));
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let flag = format!("--log-file={}", log.display());
    let done = Command::new("h2load").args(["--h1", "-t1", "-c4", "-D3", &flag, &url]).output();
    if done.is_err() {
        eprintln!("h2load is not installed: not compared with it");
        return;
    }
    // A line for each request: start, status, microseconds.
    let text = std::fs::read_to_string(log).unwrap();
    let micros = |line: &str| line.split('\t').nth(2).unwrap().parse::<u64>().unwrap();
    let times: Vec<_> = text.lines().map(micros).collect();
    let over = |limit| times.iter().filter(|time| **time >= limit).count();
    assert!((1..=4).contains(&over(900_000)), "of {}: {}", times.len(), over(900_000));
    assert!(over(500_000) * 100 < times.len(), "of {}: {}", times.len(), over(500_000));
}

/// A generator that stands still for a second is late with all that was due meanwhile. It has
/// not waited for connections, though there are only 8 when it goes on.
#[test]
fn its_own_stall_is_not_the_targets() {
    let origin = origin();
    let url = url(&origin, "/b/1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let common = ["-R", "500", "-d", "3s", "-c", "8", "-t", "1", "--json", path.to_str().unwrap()];
    let mut child = command(&[&common[..], &[&url]].concat()).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    errors.read_line(&mut String::new()).unwrap(); // A second has passed.
    let signal = |signal| {
        // SAFETY: a signal to a process that we started and have not waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
    };
    signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(1));
    signal(libc::SIGCONT);
    std::io::copy(&mut errors, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report = report::read(&path).unwrap().remove(0);
    assert_eq!((report.sent, report.failures.total()), (1_500, 0), "{text}");
    let slow = report.corrected.count_between(100_000_000, u64::MAX);
    assert!(slow >= 440, "the stall shows: {slow}");
    assert!(report.late >= 480, "{} late, {} waited", report.late, report.waited);
    assert!(report.late > report.waited, "{} late, {} waited", report.late, report.waited);
    assert!(report.lateness_ns.max >= 980_000_000, "{:?}", report.lateness_ns);
    assert!(report.generator.bottleneck && text.contains("the generator was the bottleneck"));
}

/// One clear line on standard error, nothing on standard output, exit 2.
#[test]
fn bad_input_is_one_line_and_exit_2() {
    let origin = origin();
    let good = url(&origin, "/b/1");
    let good = good.as_str();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{unused}/");
    for (arguments, says) in [
        (vec![good], "-R RATE sends each when it is due"),
        (vec![], "name a URL"),
        (vec!["-R", "0", good], "a rate of 0 sends nothing"),
        (vec!["-R", "ten", good], "no rate"),
        (vec!["-R", "1k", "--closed", good], "cannot be used with"),
        (vec!["-R", "1k", "nonsense"], "no scheme"),
        (vec!["-R", "1k", "ftp://a/"], "not http"),
        (vec!["-R", "1k", "http://127.0.0.1:99999/"], "port"),
        (vec!["-R", "1k", "http://no.such.host.invalid/"], "cannot resolve"),
        (vec!["-R", "1k", &dead], "connection refused"),
        (vec!["--closed", &dead], "connection refused"),
        (vec!["-R", "1k", "--no-keepalive", &dead], "connection refused"),
        (vec!["-R", "1k", "--threshold", "p99", good], "no threshold"),
        (vec!["-R", "1k", "--threshold", "p99<5", good], "unit"),
        (vec!["--find-max", "p99!5ms", good], "no threshold"),
        (vec!["-R", "1k", "-d", "0s", good], "no time"),
        (vec!["-R", "1k", "-d", "soon", good], "no duration"),
        (vec!["-R", "1k", "-c", "0", good], "at least 1"),
        (vec!["-R", "1k", "-H", "no colon", good], "no header"),
        (vec!["-R", "1k", "--body", "@/no/such/file", good], "cannot read the body"),
        (vec!["-R", "1k", "--cpus", "4000", good], "CPU 4000"),
        (vec!["-R", "1k", "--scenario", "/no/such/file", "-q"], "cannot be used with"),
        (vec!["--scenario", "/no/such/file"], "cannot read"),
        (vec!["-R", "1k", "--html", "/no/such/folder/x", "-n", "1", good], "cannot write"),
        (vec!["--wrong"], "--wrong"),
        (vec!["report"], "FILE"),
        (vec!["report", "/no/such/file"], "cannot read"),
        (vec!["origin", "--listen", "here"], "--listen"),
    ] {
        let output = run(&arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(says), "{arguments:?}: {errors}");
        let lines = errors.lines().filter(|line| line.starts_with("outrigger-loadgen: ")).count();
        assert_eq!(lines, 1, "{arguments:?}: {errors}");
    }
}

/// A soft limit is raised; a hard one is told before the start.
#[test]
fn descriptors_are_counted_first() {
    use std::os::unix::process::CommandExt as _;
    let origin = origin();
    let url = url(&origin, "/b/1");
    let limited = |soft: u64, hard: u64, connections: &str| {
        let common = ["-q", "-R", "1k", "-n", "200", "-t", "1", "-c", connections, &url];
        let mut command = command(&common);
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: setrlimit is async-signal-safe, and the limit lives in the closure.
        unsafe {
            command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        command.output().unwrap()
    };
    let raised = limited(64, 512, "150");
    let text = String::from_utf8_lossy(&raised.stdout);
    assert_eq!(raised.status.code(), Some(0), "{}", String::from_utf8_lossy(&raised.stderr));
    assert!(text.contains("200 sent, 200 answered, 0 failed"), "{text}");
    let refused = limited(64, 128, "150");
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("-c 150 needs about") && errors.contains("may have 128"), "{errors}");
}

/// Each address must answer; the message names the one that does not.
#[test]
fn one_dead_target_is_told_at_the_start() {
    let origin = origin();
    let live = url(&origin, "/b/1");
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{unused}/dead");
    let weighted = format!("99@{live}");
    for how in [&["-R", "1k"][..], &["--closed"], &["-R", "1k", "--no-keepalive"]] {
        for threads in ["1", "3"] {
            let rest = ["-t", threads, "-c", "6", &weighted, &dead];
            let output = run(&[how, &rest[..]].concat());
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{how:?}: {errors}");
            let says = format!("outrigger-loadgen: cannot reach {dead}: connection refused\n");
            assert_eq!(errors, says, "{how:?}");
            assert!(output.stdout.is_empty());
        }
    }
    assert_eq!(origin.stat().requests, 0);
}

/// What a flag was given for must happen, or be refused by name.
#[test]
fn no_flag_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let request = "[[requests]]\nurl = \"http://127.0.0.1:1/\"\n";
    let phase = "[[phases]]\nhold = 10\nduration = \"1s\"\n";
    let closed = path("closed", &format!("closed = true\n{request}"));
    let phased = path("phased", &format!("{phase}{request}"));
    let twice = path("twice", &format!("duration = \"1s\"\n{phase}{request}"));
    let poisson = path("poisson", &format!("closed = true\narrivals = \"poisson\"\n{request}"));
    let (closed, phased) = (closed.as_str(), phased.as_str());
    for (arguments, names) in [
        (vec![closed, "-H", "A: b", "-X", "PUT"], &["-H", "-X"][..]),
        (vec![closed, "--body", "x", "--chunked"], &["--body", "--chunked"]),
        (vec![phased, "--expect-status", "200", "--expect-length", "1"], &["status", "length"]),
        (vec![phased, "--expect-hash", "first"], &["--expect-hash"]),
        (vec![phased, "-d", "2s"], &["-d"]),
        (vec![&twice], &["the file's duration"]),
        (vec![closed, "--arrivals", "poisson", "--spin", "1ms"], &["--arrivals", "--spin"]),
        (vec![&poisson], &["the file's arrivals"]),
    ] {
        let output = run(&[&["--scenario"], &arguments[..]].concat());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        let named = errors.split("not used: ").nth(1).unwrap_or_else(|| panic!("{errors}"));
        assert!(names.iter().all(|name| named.contains(name)), "{arguments:?}: {errors}");
    }
    let output = run(&["--closed", "--arrivals", "constant", "http://127.0.0.1:1/"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not used: --arrivals"));
}

#[test]
fn a_threshold_decides_the_exit() {
    let origin = origin();
    let fails = url(&origin, "/e/503");
    let works = url(&origin, "/b/1");
    for (threshold, target, code) in [
        ("errors<0.1%", &works, 0),
        ("p50>0ms", &works, 0),
        ("max<1h", &works, 0),
        ("errors<0.1%", &fails, 99),
        ("errors<=100", &fails, 0),
        ("p99<1ns", &works, 99),
        ("rate>1M", &works, 99),
    ] {
        let output = run(&["-q", "-R", "1k", "-n", "100", "--threshold", threshold, target]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{threshold}: {text}");
        assert!(text.contains(&format!("Threshold    {threshold}: ")), "{text}");
    }
}

/// A latency that nobody was answered in was not fast.
#[test]
fn without_an_answer_no_latency_is_held() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}/", listener.local_addr().unwrap());
    // Whatever is asked, the connection ends. The thread ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream: TcpStream = stream;
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 1024]);
            });
        }
    });
    let common = ["-q", "-R", "50", "-n", "20", "-c", "4", "-t", "1"];
    let output = run(&[&common[..], &["--threshold", "p99<1h", &target]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(99), "{text}");
    let says = "Threshold    p99<1h: FAILED (no answer; 100.000% of the requests failed)";
    assert!(text.contains(says), "{text}");
}

/// A target that resets a tenth of the requests, and answers the others at once, is not fast at p99;
/// nor at a rate that a search would call held.
#[test]
fn a_latency_is_not_held_by_failing_fast() {
    let asked = Arc::new(AtomicU64::new(0));
    let address = target(move |mut stream| {
        let _ = stream.set_nodelay(true);
        while read_head(&mut stream) && asked.fetch_add(1, Ordering::Relaxed) % 10 != 9 {
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    let target = format!("http://{address}/");
    let common = ["-q", "-R", "200", "-n", "200", "-c", "8", "-t", "1"];
    for (threshold, code, says) in [
        ("p99<1h", 99, "FAILED (never: 20 requests broke off; 10.000% of the requests failed)"),
        ("p50<1h", 0, "; 10.000% of the requests failed)"),
    ] {
        let output = run(&[&common[..], &["--threshold", threshold, &target]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{threshold}: {text}");
        assert!(text.contains(says), "{threshold}: {text}");
        assert!(text.contains("Lost         20 broke off"), "{text}");
    }
    for (threshold, code) in [("errors<1", 99), ("p50<1h", 99), ("errors<20%", 0)] {
        let common = ["-q", "--steps", "200", "-d", "1s", "-c", "8", "-t", "1"];
        let output = run(&[&common[..], &["--threshold", threshold, &target]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{threshold}: {text}");
    }
}

/// What it says that it sent is what the origin counted.
#[test]
fn its_counts_are_the_origins() {
    for driver in ["io_uring", "epoll"] {
        let origin = origin();
        let common = ["--driver", driver, "-c", "7", "-t", "3", "-n", "1000"];
        let with = |rest: &[&str]| {
            let url = url(&origin, "/b/100");
            let mut arguments = common.to_vec();
            arguments.extend_from_slice(rest);
            arguments.push(&url);
            report(&arguments)
        };
        for (rest, connections) in [
            (&["--closed"][..], 7),
            (&["-R", "5k"], 7),
            (&["-R", "5k", "--arrivals", "poisson"], 7),
            (&["--closed", "--pipeline", "8"], 7),
            (&["-R", "20k", "--pipeline", "8"], 7),
            (&["--closed", "--no-keepalive"], 1_001), // One to see whether anybody is there.
            (&["-R", "5k", "--no-keepalive"], 1_001),
        ] {
            let before = origin.stat();
            let report = with(rest);
            let after = origin.stat();
            assert_eq!(report.generator.driver, driver);
            assert_eq!((report.sent, report.answered), (1_000, 1_000), "{driver} {rest:?}");
            assert_eq!(report.failures.total(), 0, "{driver} {rest:?}");
            assert_eq!(report.statuses[&200], 1_000);
            assert_eq!(report.body_bytes, 100_000);
            assert_eq!(after.requests - before.requests, 1_000, "{driver} {rest:?}");
            assert_eq!(after.connections - before.connections, connections, "{driver} {rest:?}");
        }
        assert_eq!(origin.stat().concurrency, 0);
    }
}

#[test]
fn bodies_go_up_and_come_down() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("body");
    std::fs::write(&path, vec![b'u'; 3_000_000]).unwrap();
    let body = format!("@{}", path.display());
    let large = url(&origin, "/b/3000000");
    for extra in [&[][..], &["--chunked"], &["--chunked", "-X", "PUT"]] {
        let mut arguments = vec!["--closed", "-n", "40", "-c", "4", "--expect-hash", "first"];
        arguments.extend_from_slice(&["--expect-length", "3000000", "--body", &body]);
        arguments.extend_from_slice(extra);
        arguments.push(&large);
        let report = report(&arguments);
        assert_eq!((report.answered, report.failures.total()), (40, 0), "{extra:?}");
        assert_eq!(report.body_bytes, 120_000_000);
    }
    let head = report(&["--closed", "-n", "20", "-X", "HEAD", &large]);
    assert_eq!((head.answered, head.body_bytes), (20, 0));
}

/// Each kind of failure is told apart.
#[test]
fn failures_have_their_kinds() {
    let origin = origin();
    let status = report(&["--closed", "-n", "50", &url(&origin, "/e/500")]);
    assert_eq!((status.failures.status, status.failures.total()), (50, 50));
    let expected =
        report(&["--closed", "-n", "50", "--expect-status", "500", &url(&origin, "/e/500")]);
    assert_eq!(expected.failures.total(), 0);
    let length = report(&["--closed", "-n", "50", "--expect-length", "9", &url(&origin, "/b/10")]);
    assert_eq!((length.failures.mismatch, length.failures.total()), (50, 50));
    let hash = "0123456789abcdef";
    let hash = report(&["--closed", "-n", "50", "--expect-hash", hash, &url(&origin, "/b/10")]);
    assert_eq!((hash.failures.mismatch, hash.failures.total()), (50, 50));

    let cut = target(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort");
    });
    let cut = report(&["--closed", "-n", "5", "-c", "1", &format!("http://{cut}/")]);
    assert_eq!((cut.failures.reset, cut.answered), (5, 0));

    let garbage = target(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n\r\n");
        let _ = stream.read(&mut [0]);
    });
    let garbage = report(&["--closed", "-n", "5", "-c", "1", &format!("http://{garbage}/")]);
    assert_eq!((garbage.failures.mismatch, garbage.answered), (5, 0));

    let silent = target(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let silent = report(&[
        "-R",
        "20",
        "-n",
        "4",
        "-c",
        "4",
        "--timeout",
        "300ms",
        &format!("http://{silent}/"),
    ]);
    assert_eq!((silent.failures.timeout, silent.answered), (4, 0));
    assert!(silent.latency_ns.min >= 300_000_000, "their time counts: {:?}", silent.latency_ns);
    assert!(silent.error_share() >= 1.0);

    // Takes one connection, answers nothing, and is gone: what is due meanwhile never leaves.
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(listener);
            read_head(&mut stream);
        });
        address
    };
    let gone = report(&[
        "-R",
        "100",
        "-n",
        "20",
        "-c",
        "1",
        "-t",
        "1",
        "--timeout",
        "200ms",
        &format!("http://{gone}/"),
    ]);
    assert_eq!((gone.failures.reset, gone.failures.unfinished), (1, 19));
    assert!(gone.connections.failed > 0);
}

/// An answer without a length ends with the connection; the next one gets its own.
#[test]
fn answers_may_end_with_the_connection() {
    let address = target(|mut stream| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let report = report(&["--closed", "-n", "20", "-c", "2", &format!("http://{address}/")]);
    assert_eq!((report.answered, report.failures.total(), report.body_bytes), (20, 0, 260));
    assert!(report.connections.opened >= 20);
}

#[test]
fn weights_share_the_load() {
    let (one, two) = (origin(), origin());
    let urls = [
        format!("6@{}", url(&one, "/b/1")),
        format!("3@{}", url(&one, "/b/2")),
        format!("1@{}", url(&two, "/b/3")),
    ];
    let report = report(&["-R", "10k", "-n", "5000", "-c", "10", &urls[0], &urls[1], &urls[2]]);
    assert_eq!(report.answered, 5_000);
    let answers = |origin, path| report.targets[&url(origin, path)];
    // An address gets exactly its share; within one it is drawn, with deviation 32.
    assert_eq!(answers(&two, "/b/3"), 500);
    assert_eq!((one.stat().requests, two.stat().requests), (4_500, 500));
    assert!((2_850..3_150).contains(&answers(&one, "/b/1")), "{:?}", report.targets);
}

/// Weights may be as large as their type allows, also together.
#[test]
fn weights_may_be_large() {
    let origin = origin();
    let urls = ["/b/1", "/b/2"].map(|path| format!("4294967295@{}", url(&origin, path)));
    let report = report(&["-R", "10k", "-n", "2000", "-c", "4", &urls[0], &urls[1]]);
    assert_eq!(report.answered, 2_000);
    // Drawn, with deviation 22.
    let first = report.targets[&url(&origin, "/b/1")];
    assert!((850..1_150).contains(&first), "{:?}", report.targets);
}

#[test]
fn a_scenario_is_followed() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("upload"), "uploaded").unwrap();
    let scenario = folder.path().join("mix.toml");
    let text = format!(
        "connections = 4\nthreads = 2\nthresholds = [\"errors<1%\"]\n\
         [[phases]]\nramp = [0, 200]\nduration = \"500ms\"\n\
         [[phases]]\nstep = [100, 300]\nsteps = 3\nduration = \"600ms\"\n\
         [[phases]]\nhold = \"1k\"\nduration = \"200ms\"\n\
         [[requests]]\nurl = \"{}\"\nweight = 3\n\
         [[requests]]\nurl = \"{}\"\nbody = \"@upload\"\nexpect_status = 201\n",
        url(&origin, "/b/10"),
        url(&origin, "/e/201")
    );
    std::fs::write(&scenario, text).unwrap();
    let report = report(&["--scenario", scenario.to_str().unwrap()]);
    // 50 in the ramp, 20 + 40 + 60 in the steps, 200 in the hold.
    assert_eq!((report.sent, report.answered, report.failures.total()), (370, 370, 0));
    assert_eq!(report.asked.connections, 4);
    assert!(report.statuses[&201] > 40 && report.statuses[&200] > 200, "{:?}", report.statuses);
    std::fs::write(&scenario, "conections = 4").unwrap();
    let output = run(&["--scenario", scenario.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("conections"));
}

/// One connection and 10 ms for each request can do at most 100 a second.
#[test]
fn the_highest_rate_is_found() {
    let origin = origin();
    let slow = url(&origin, "/s/10/1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.json");
    let json = path.to_str().unwrap();
    let common = ["-q", "-c", "1", "-t", "1", "-d", "500ms", "--json", json, &slow];
    let found = command(&["--find-max", "p90<200ms", "-R", "20"]).args(common).output().unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(0), "{text}");
    let reports = report::read(&path).unwrap();
    let rate = |report: &Report| report.asked.rate.unwrap();
    let held = |report: &&Report| report.held == Some(true);
    let best = reports.iter().filter(held).max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap();
    let tried: Vec<_> = reports.iter().map(|report| (rate(report), report.held)).collect();
    // A busy machine makes it slower, never faster.
    assert!((20.0..=100.0).contains(&rate(best)), "{tried:?}");
    assert!(best.reached_rate() && best.latency_ns.p90 < 200_000_000, "{:?}", best.latency_ns);
    // It ends where the next rate up, hardly above, does not hold.
    let above = reports.iter().filter(|it| rate(it) > rate(best)).map(rate);
    let next = above.fold(f64::INFINITY, f64::min);
    assert!(next / rate(best) <= 1.04, "{tried:?}");
    for report in &reports {
        let holds = report.reached_rate() && report.latency_ns.p90 < 200_000_000;
        assert_eq!(report.held, Some(holds), "{}: {:?}", rate(report), report.latency_ns);
    }
    let shown = text.split("The highest rate").nth(1).unwrap();
    assert!(shown.contains(&format!("asked {:.1}/s", rate(best))), "{tried:?}: {text}");

    let steps =
        command(&["--steps", "500,10,20", "--threshold", "p90<200ms"]).args(common).output();
    let steps = steps.unwrap();
    assert_eq!(steps.status.code(), Some(0));
    let shown = String::from_utf8(steps.stdout).unwrap();
    let shown = shown.split("The highest rate").nth(1).unwrap();
    assert!(shown.contains("asked 20.0/s"), "{shown}");
    let reports = report::read(&path).unwrap();
    let held: Vec<_> = reports.iter().map(|report| report.held).collect();
    assert_eq!(held, [Some(false), Some(true), Some(true)]);
    let none = command(&["--steps", "1k,2k"]).args(common).output().unwrap();
    assert_eq!(none.status.code(), Some(99));
    assert!(String::from_utf8_lossy(&none.stdout).contains("No rate holds"));
}

/// Hashing gigabytes a second is beyond one thread, and not beyond the origin.
#[test]
fn a_rate_that_the_generator_cannot_do_is_not_the_targets_limit() {
    let origin = origin();
    let large = url(&origin, "/b/8000000");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.json");
    let output = command(&["--steps", "1,2k", "-q", "-c", "2", "-t", "1", "-d", "1s"])
        .args(["--expect-hash", "first", "--json", path.to_str().unwrap(), &large])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("  no: the generator was the bottleneck\n"), "{text}");
    let says = "at 2,000/s the generator itself was the bottleneck: this is not the target's limit";
    assert!(text.contains(says), "{text}");
    assert!(!text.contains("The highest rate that holds"), "{text}");
    let reports = report::read(&path).unwrap();
    assert_eq!((reports[0].held, reports[1].held), (Some(true), Some(false)));
    assert!(reports[1].generator.bottleneck);
    let compared = run(&["report", path.to_str().unwrap()]);
    let compared = String::from_utf8(compared.stdout).unwrap();
    assert!(compared.contains("(the generator was the bottleneck)"), "{compared}");
}

/// Ctrl-C ends the run, and what was measured is printed.
#[test]
fn an_interrupt_prints_the_report_so_far() {
    let origin = origin();
    let url = url(&origin, "/b/1");
    let mut child = command(&["-R", "500", "-d", "1h", "-c", "2", &url]).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert!(line.contains("p99"), "{line}");
    // SAFETY: a signal to a process that we started and have not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("Open loop, constant arrivals: asked 500/s"), "{text}");
    assert!(text.contains("0 failed"), "{text}");
}

/// A file that cannot be written is found before anything is sent, and nothing is left behind; one
/// that fails at the end takes the report with it no more.
#[test]
fn files_that_cannot_be_written() {
    let origin = origin();
    let good = url(&origin, "/b/1");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.json");
    for flag in ["--json", "--html", "--hgrm", "--hlog"] {
        let spare = if flag == "--json" { "--html" } else { "--json" };
        let output = run(&[
            "-R",
            "1k",
            "-d",
            "1h",
            spare,
            other.to_str().unwrap(),
            flag,
            "/no/such/folder/x",
            &good,
        ]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains("cannot write /no/such/folder/x"), "{errors}");
        assert!(output.stdout.is_empty() && !other.exists(), "{flag}");
    }
    assert_eq!(origin.stat().requests, 0);

    for flag in ["--json", "--html", "--hgrm", "--hlog"] {
        let output = run(&["-q", "-R", "1k", "-n", "100", flag, "/dev/full", &good]);
        let (text, errors) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
        let (text, errors) = (text.unwrap(), errors.unwrap());
        assert_eq!(output.status.code(), Some(1), "{flag}: {errors}");
        assert!(text.contains("100 sent, 100 answered"), "{flag}: {text}");
        assert!(errors.contains("cannot write /dev/full: "), "{flag}: {errors}");
    }

    // What is there stays when nothing is measured, and goes when something is.
    let kept = folder.path().join("kept.json");
    std::fs::write(&kept, "x".repeat(1 << 20)).unwrap();
    let kept = kept.to_str().unwrap();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{unused}/");
    let output = run(&["-R", "1k", "--json", kept, "--html", other.to_str().unwrap(), &dead]);
    assert_eq!(output.status.code(), Some(2));
    assert!(std::fs::read(kept).unwrap().len() == 1 << 20 && !other.exists());
    let output = run(&["-q", "-R", "1k", "-n", "100", "--json", kept, &good]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(report::read(Path::new(kept)).unwrap().len(), 1);
}

/// Both of HdrHistogram's formats, by their own rules; and a page that needs nothing else.
#[test]
fn files_are_what_their_readers_expect() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [hgrm, hlog, json, html] = ["a.hgrm", "a.hlog", "a.json", "a.html"].map(file);
    let label = "<b>&\"first\"";
    let output = run(&[
        "-q",
        "-R",
        "1k",
        "-d",
        "2s",
        "--hgrm",
        &hgrm,
        "--hlog",
        &hlog,
        "--json",
        &json,
        "--html",
        &html,
        "--label",
        label,
        &url(&origin, "/b/1"),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report::read(Path::new(&json)).unwrap().remove(0);
    check_hgrm(&std::fs::read_to_string(hgrm).unwrap(), &report);
    check_hlog(&std::fs::read(hlog).unwrap(), &report);

    let compared = file("both.html");
    let both = run(&["report", &json, &json, "--html", &compared]);
    assert_eq!(both.status.code(), Some(0));
    for path in [html, compared] {
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page.matches("<svg").count() >= 4);
        // In our own markup; what stands in a plot, plotters escapes.
        assert!(page.contains("</span>&lt;b&gt;&amp;&quot;first&quot;</td>"));
        assert!(!page.contains("<b>&\""));
        for outside in ["src=", "href=", "@import", "url(", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}

fn check_hgrm(text: &str, report: &Report) {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("       Value     Percentile TotalCount 1/(1-Percentile)"));
    assert_eq!(lines.next(), Some(""));
    let (mut last_value, mut last_quantile, mut last_count) = (0.0, -1.0, 0);
    let mut rows = 0;
    for line in lines.by_ref().take_while(|line| !line.starts_with('#')) {
        let fields: Vec<f64> =
            line.split_whitespace().map(|field| field.parse().unwrap()).collect();
        let (value, quantile, count) = (fields[0], fields[1], fields[2] as u64);
        assert!(value >= last_value && quantile > last_quantile && count >= last_count, "{line}");
        match fields.get(3) {
            Some(inverse) => assert!((inverse * (1.0 - quantile) - 1.0).abs() < 0.01, "{line}"),
            None => assert_eq!(quantile, 1.0),
        }
        // Values are rounded to a microsecond; the count at one is between its neighbours'.
        let below = |ms: f64| report.corrected.count_between(0, (ms * 1e6) as u64);
        assert!((below(value - 0.001)..=below(value + 0.001)).contains(&count), "{line}");
        assert!(count as f64 / report.corrected.len() as f64 >= quantile - 1e-9, "{line}");
        (last_value, last_quantile, last_count) = (value, quantile, count);
        rows += 1;
    }
    assert!(rows > 20);
    assert_eq!((last_quantile, last_count), (1.0, report.corrected.len()));
    assert_eq!(text.lines().filter(|line| line.starts_with("#[")).count(), 3);
    assert!(text.contains("#[Mean    = ") && text.contains(", StdDeviation   = "));
    let total = format!("Total count    = {:12}]", report.corrected.len());
    assert!(text.contains("#[Max     = ") && text.contains(&total), "{text}");
    assert!(text.ends_with("SubBuckets     =         2048]\n"), "{text}");
}

fn check_hlog(bytes: &[u8], report: &Report) {
    use base64::Engine as _;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let text = String::from_utf8_lossy(bytes);
    assert!(text.contains("#[StartTime: ") && text.contains("#[BaseTime: "), "{text}");
    let (mut sum, mut intervals) = (0, 0);
    for entry in IntervalLogIterator::new(bytes) {
        let LogEntry::Interval(interval) = entry.unwrap() else { continue };
        assert_eq!(interval.start_timestamp(), Duration::from_secs(intervals));
        let encoded =
            base64::engine::general_purpose::STANDARD.decode(interval.encoded_histogram()).unwrap();
        let histogram: hdrhistogram::Histogram<u64> =
            hdrhistogram::serialization::Deserializer::new()
                .deserialize(&mut &encoded[..])
                .unwrap();
        sum += histogram.len();
        intervals += 1;
    }
    assert_eq!(sum, report.corrected.len());
    assert!(intervals >= 2);
}

/// What is sent in the warm-up is sent, and not recorded.
#[test]
fn the_warm_up_does_not_count() {
    let origin = origin();
    let begun = Instant::now();
    let url = url(&origin, "/b/1");
    let report = report(&["-R", "1k", "-d", "500ms", "--warmup", "1s", "-c", "2", &url]);
    assert!(begun.elapsed() >= Duration::from_millis(1_400));
    assert_eq!((report.sent, report.corrected.len()), (500, 500));
    assert_eq!(origin.stat().requests, 1_500);

    // A count is of what is measured: who asks for 300 gets 300.
    for (load, threads) in [("-R500", "1"), ("-R500", "2"), ("--closed", "2")] {
        for arrivals in [None, Some("poisson")] {
            let mut flags = vec![load, "-n", "300", "--warmup", "200ms", "-c", "3", "-t", threads];
            match arrivals {
                Some(_) if load == "--closed" => continue,
                Some(name) => flags.extend(["--arrivals", name]),
                None => {}
            }
            let before = origin.stat().requests;
            flags.push(&url);
            let report = self::report(&flags);
            let counted = (report.sent, report.answered, report.corrected.len());
            assert_eq!(counted, (300, 300, 300), "{flags:?}");
            let sent = origin.stat().requests - before;
            assert!(sent > 300, "{flags:?}: the warm-up's come on top: {sent}");
            if load == "-R500" && arrivals.is_none() {
                assert_eq!(sent, 400);
                assert_eq!(report.asked.rate, Some(500.0));
                assert_eq!(report.asked.planned_s, Some(0.6));
            }
        }
    }
}
