package engine_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/workflows/engine"
)

func waits(ctx workflow.Context) (string, error) {
	var v string
	workflow.GetSignalChannel(ctx, "go").Receive(ctx, &v)
	return v, nil
}

func open(t *testing.T, path string) (*engine.Engine, client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := engine.Start(ctx, engine.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.DialContext(ctx, client.Options{HostPort: e.Address(), Namespace: engine.Namespace})
	if err != nil {
		t.Fatal(err)
	}
	w := worker.New(c, "q", worker.Options{})
	w.RegisterWorkflow(waits)
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return e, c
}

// A workflow that was accepted goes on after the engine was stopped and started again.
func TestWorkflowSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.db")
	e, c := open(t, path)
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "w", TaskQueue: "q"}, waits)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := e.Stop(); err != nil {
		t.Fatal(err)
	}
	e, c = open(t, path)
	defer e.Stop()
	defer c.Close()
	if err := c.SignalWorkflow(t.Context(), "w", run.GetRunID(), "go", "on"); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := c.GetWorkflow(t.Context(), "w", run.GetRunID()).Get(t.Context(), &got); err != nil || got != "on" {
		t.Fatalf("after the restart: %q, %v", got, err)
	}
}

func TestConfigNamesWhatIsMissing(t *testing.T) {
	if err := (engine.Config{}).Validate(); err == nil {
		t.Fatal("an empty path was accepted")
	}
}
