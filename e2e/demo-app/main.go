// A small web service whose behaviour can be chosen: it says which version it is, fails as often and answers as
// slowly as it is told, and counts what it does. `demo-app pause` does nothing until it is told to end: the
// container that holds a pod's network.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// buckets are the upper bounds of the duration histogram, in seconds.
var buckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

type metrics struct {
	sync.Mutex
	requests map[string]uint64 // by code
	counts   []uint64          // by bucket, not cumulative; the last one is +Inf
	sum      float64
	version  string
}

func newMetrics(version string) *metrics {
	// Both codes exist from the start: a rate over a counter that was born with its first error misses that error.
	return &metrics{requests: map[string]uint64{"200": 0, "500": 0}, counts: make([]uint64, len(buckets)+1), version: version}
}

func (m *metrics) observe(code int, took time.Duration) {
	seconds := took.Seconds()
	m.Lock()
	defer m.Unlock()
	m.requests[strconv.Itoa(code)]++
	m.counts[sort.SearchFloat64s(buckets, seconds)]++
	m.sum += seconds
}

func (m *metrics) write(w io.Writer) {
	m.Lock()
	defer m.Unlock()
	fmt.Fprintln(w, "# HELP http_requests_total Requests answered.")
	fmt.Fprintln(w, "# TYPE http_requests_total counter")
	codes := make([]string, 0, len(m.requests))
	for code := range m.requests {
		codes = append(codes, code)
	}
	sort.Strings(codes)
	for _, code := range codes {
		fmt.Fprintf(w, "http_requests_total{version=%q,code=%q} %d\n", m.version, code, m.requests[code])
	}
	fmt.Fprintln(w, "# HELP http_request_duration_seconds Time to answer.")
	fmt.Fprintln(w, "# TYPE http_request_duration_seconds histogram")
	var total uint64
	for i, bound := range buckets {
		total += m.counts[i]
		fmt.Fprintf(w, "http_request_duration_seconds_bucket{version=%q,le=%q} %d\n", m.version, strconv.FormatFloat(bound, 'g', -1, 64), total)
	}
	total += m.counts[len(buckets)]
	fmt.Fprintf(w, "http_request_duration_seconds_bucket{version=%q,le=\"+Inf\"} %d\n", m.version, total)
	fmt.Fprintf(w, "http_request_duration_seconds_sum{version=%q} %g\n", m.version, m.sum)
	fmt.Fprintf(w, "http_request_duration_seconds_count{version=%q} %d\n", m.version, total)
}

// number reads a knob; a knob that does not parse ends the program, so that a typing error is not "no errors".
func number(name string, otherwise, least, most float64) float64 {
	text := strings.TrimSpace(os.Getenv(name))
	if text == "" {
		return otherwise
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || value < least || value > most {
		fmt.Fprintf(os.Stderr, "%s=%q: a number from %g to %g is needed\n", name, text, least, most)
		os.Exit(2)
	}
	return value
}

func text(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "pause" {
		<-ended.Done()
		return
	}

	version := text("VERSION", "unknown")
	errorRate := number("ERROR_RATE", 0, 0, 1)
	latency := time.Duration(number("LATENCY_MS", 0, 0, 60_000) * float64(time.Millisecond))
	startDelay := time.Duration(number("START_DELAY_SECONDS", 0, 0, 600) * float64(time.Second))
	drain := time.Duration(number("DRAIN_SECONDS", 3, 0, 600) * float64(time.Second))
	port := strconv.FormatFloat(number("PORT", 8080, 1, 65535), 'f', 0, 64)
	host, _ := os.Hostname()
	counted := newMetrics(version)
	begun := time.Now()

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if time.Since(begun) < startDelay {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		counted.write(w)
	})
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		start, code := time.Now(), http.StatusOK
		if latency > 0 {
			select {
			case <-time.After(latency):
			case <-r.Context().Done():
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Version", version)
		if errorRate > 0 && rand.Float64() < errorRate {
			// An error on purpose is the application's, not a transition's: whoever counts lost requests can tell.
			code = http.StatusInternalServerError
			w.Header().Set("X-Deliberate-Error", "1")
		}
		// Counted before the answer leaves: who has the answer finds it in the metrics.
		counted.observe(code, time.Since(start))
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]string{"version": version, "pod": host})
	})

	server := &http.Server{Addr: ":" + port, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	fmt.Printf("version %s serves on %s (errors %g, latency %s, drain %s)\n", version, server.Addr, errorRate, latency, drain)

	select {
	case err := <-failed:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case <-ended.Done():
	}
	// The endpoint's removal reaches the proxies after the signal reaches this process: go on serving meanwhile.
	// Kept connections stay open too: closing an idle one races with the request that a proxy is about to send on it.
	time.Sleep(drain)
	bounded, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(bounded); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
