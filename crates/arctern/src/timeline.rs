//! `migrate --report`: a move as one page, with the timeline drawn. Nothing in it comes from elsewhere
//! and nothing in it runs.

use std::fmt::Write;

use arctern_migrate::Moved;

use crate::ui::{duration, size};

const STYLE: &str = include_str!("timeline.css");

/// What a bar shows.
struct Bar {
    name: String,
    /// A class of the style.
    kind: &'static str,
    begin_us: u64,
    total_us: u64,
}

/// The page about containers that moved together. `when` is the time at which the move ended.
pub fn page(all: &[Moved], when: &str) -> String {
    let names: Vec<String> = all.iter().map(|moved| escaped(&moved.plan.container)).collect();
    let destination = all.first().map(|moved| escaped(&moved.plan.destination));
    let title = format!("{} → {}", names.join(", "), destination.unwrap_or_default());
    let mut page = String::new();
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p class=\"when\">moved by arctern, {}</p>\n",
        escaped(when)
    );
    for (moved, name) in all.iter().zip(names) {
        if all.len() > 1 {
            let _ = writeln!(page, "<h1>{name}</h1>");
        }
        of_one(&mut page, moved);
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// What there is of one container.
fn of_one(page: &mut String, moved: &Moved) {
    figures(page, moved);
    chart(page, "The whole move", &whole(moved), moved.total_us);
    let freeze = format!("The freeze: {}", duration(moved.downtime_us));
    chart(page, &freeze, &freeze_phases(moved), moved.downtime_us);
    rounds(page, moved);
    if !moved.warnings.is_empty() {
        page.push_str("<h2>Warnings</h2>\n<ul>\n");
        for warning in &moved.warnings {
            let _ = writeln!(page, "<li>{}</li>", escaped(warning));
        }
        page.push_str("</ul>\n");
    }
}

fn figures(page: &mut String, moved: &Moved) {
    let image = match moved.plan.image {
        true => format!("{} ({} layer(s))", size(moved.plan.image_bytes), moved.plan.layers),
        false => "was there".to_owned(),
    };
    let list = [
        ("down", duration(moved.downtime_us)),
        ("whole command", duration(moved.total_us)),
        ("sent in all", size(moved.sent)),
        ("memory ahead", size(moved.rounds.iter().map(|round| round.sent).sum())),
        ("memory in the freeze", size(moved.rest)),
        ("files ahead", size(moved.files)),
        ("image", image),
    ];
    page.push_str("<dl class=\"figures\">\n");
    for (name, value) in list {
        let _ = writeln!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page.push_str("</dl>\n");
}

/// From the beginning of the command to its end.
fn whole(moved: &Moved) -> Vec<Bar> {
    let bar = |name: &str, kind, begin_us, end_us: u64| Bar {
        name: name.to_owned(),
        kind,
        begin_us,
        total_us: end_us.saturating_sub(begin_us),
    };
    let first = moved.rounds.first().map_or(moved.frozen_at_us, |round| round.begin_us);
    let mut bars = vec![bar("asking, image, files ahead", "ready", 0, first)];
    bars.extend(moved.rounds.iter().map(|round| Bar {
        name: format!("round {}: {}", round.number, size(round.sent)),
        kind: "round",
        begin_us: round.begin_us,
        total_us: round.total_us,
    }));
    let thawed = moved.frozen_at_us + moved.downtime_us;
    bars.push(bar("frozen", "frozen", moved.frozen_at_us, thawed));
    bars.push(bar("tidying up", "ready", thawed, moved.total_us));
    bars
}

/// The phases of the freeze.
fn freeze_phases(moved: &Moved) -> Vec<Bar> {
    let mut begin_us = 0;
    let phases = [
        ("captured, memory sent", moved.capture_us),
        ("archive sent", moved.sending_us),
        ("built there", moved.building_us),
        ("handed over", moved.commit_us),
    ];
    let bars = phases.map(|(name, total_us)| {
        let bar = Bar { name: name.to_owned(), kind: "frozen", begin_us, total_us };
        begin_us += total_us;
        bar
    });
    bars.into()
}

/// Bars below each other, each where it was in time.
fn chart(page: &mut String, title: &str, bars: &[Bar], total_us: u64) {
    let _ = write!(page, "<h2>{title}</h2>\n<div class=\"chart\">\n");
    let percent = |us: u64| us as f64 * 100.0 / total_us.max(1) as f64;
    for Bar { name, kind, begin_us, total_us } in bars {
        let left = percent(*begin_us).min(100.0);
        let width = percent(*total_us).min(100.0 - left);
        let _ = writeln!(
            page,
            "<div class=\"row\"><span class=\"name\">{}</span><span class=\"time\">{}</span>\
             <div class=\"track\"><div class=\"bar {kind}\" \
             style=\"left:{left:.2}%;width:{width:.2}%\"></div></div></div>",
            escaped(name),
            duration(*total_us),
        );
    }
    let _ = write!(
        page,
        "<div class=\"scale\"><span>0</span><span>{}</span></div>\n</div>\n",
        duration(total_us)
    );
}

fn rounds(page: &mut String, moved: &Moved) {
    if moved.rounds.is_empty() {
        return;
    }
    const HEADS: [&str; 9] = [
        "round",
        "sent",
        "zeros, not sent",
        "took",
        "rate",
        "stood still",
        "written meanwhile",
        "rate of writing",
        "freeze to expect",
    ];
    page.push_str("<h2>Rounds of memory</h2>\n<div class=\"wide\"><table>\n<thead><tr>");
    for head in HEADS {
        let _ = write!(page, "<th>{head}</th>");
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for round in &moved.rounds {
        let cells = [
            round.number.to_string(),
            size(round.sent),
            size(round.zeros),
            duration(round.total_us),
            format!("{}/s", size(round.rate)),
            duration(round.stopped_us),
            size(round.dirty),
            format!("{}/s", size(round.dirty_rate)),
            duration(round.downtime_us),
        ];
        page.push_str("<tr>");
        for (head, cell) in HEADS.iter().zip(cells) {
            // Where there is no room for a head, each cell says what it is.
            let _ = write!(page, "<td data-of=\"{head}\">{cell}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n");
}

/// A text that is a text in HTML, in attributes too.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // What turns the direction of writing could make one name look like another.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use arctern_migrate::{Plan, RoundDone};

    fn moved() -> Moved {
        let hostile = "<script>alert('x')</script>\"&\u{202e}";
        let round = RoundDone {
            number: 1,
            sent: 200_000_000,
            begin_us: 400_000,
            total_us: 900_000,
            ..RoundDone::default()
        };
        Moved {
            freeze: Default::default(),
            plan: Plan {
                container: hostile.to_owned(),
                destination: hostile.to_owned(),
                memory: 1,
                changed: 1,
                image: true,
                layers: 2,
                image_bytes: 45_000_000,
                estimate: None,
            },
            files: 0,
            rounds: vec![
                round,
                RoundDone { number: 2, begin_us: 1_300_000, total_us: 50_000, ..round },
            ],
            rest: 1_000_000,
            sent: 250_000_000,
            frozen_at_us: 1_400_000,
            downtime_us: 80_000,
            capture_us: 20_000,
            sending_us: 10_000,
            building_us: 40_000,
            commit_us: 10_000,
            total_us: 1_600_000,
            warnings: vec![hostile.to_owned()],
        }
    }

    #[test]
    fn names_are_text_and_nothing_comes_from_elsewhere() {
        let page = page(&[moved()], "<now>");
        assert!(!page.contains("<script") && !page.contains("alert('"));
        assert!(
            page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}")
        );
        for part in ["src=", "href=", "url(", "@import", "http:", "https:", "\u{202e}"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn bars_are_where_they_were_in_time() {
        let page = page(&[moved()], "now");
        let bar = |left, width| format!("style=\"left:{left}%;width:{width}%\"");
        // The first round: 0.4 s to 1.3 s of 1.6 s. The freeze: 1.4 s, 0.08 s long.
        for bar in [bar("25.00", "56.25"), bar("87.50", "5.00"), bar("37.50", "50.00")] {
            assert!(page.contains(&bar), "{bar} is not in {page}");
        }
    }

    #[test]
    fn nothing_is_wider_than_its_track() {
        let odd = Moved { total_us: 0, downtime_us: 0, ..moved() };
        let page = page(&[odd], "now");
        assert!(!page.contains("NaN") && !page.contains("inf") && !page.contains("width:-"));
    }
}
