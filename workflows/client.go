package workflows

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
)

// Client starts workflows and talks to running ones.
type Client struct{ temporal client.Client }

// Connect reaches the workflow engine at address (host:port) and its namespace.
func Connect(ctx context.Context, address, namespace string, log *slog.Logger) (*Client, error) {
	c, err := client.DialContext(ctx, client.Options{HostPort: address, Namespace: namespace,
		Logger: sdklog.NewStructuredLogger(slog.New(quiet{log.Handler()}))})
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unreachable, Where: "workflow engine " + address, What: "connect", Err: err,
			Next: "check --temporal and that the namespace " + namespace + " exists"}
	}
	return &Client{c}, nil
}

// quiet passes on warnings and errors: the ordinary course of a run is in its record.
type quiet struct{ slog.Handler }

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

// Close ends the connection.
func (c *Client) Close() { c.temporal.Close() }

// Work runs workflows and activities until ctx ends.
func (c *Client) Work(ctx context.Context, a *Activities) error {
	w := worker.New(c.temporal, TaskQueue, worker.Options{
		MaxConcurrentActivityExecutionSize:     500,
		MaxConcurrentWorkflowTaskExecutionSize: 100,
		MaxConcurrentActivityTaskPollers:       8,
		MaxConcurrentWorkflowTaskPollers:       8,
		DisableRegistrationAliasing:            true,
		WorkerStopTimeout:                      2 * time.Second,
	})
	Register(w, a)
	if err := w.Start(); err != nil {
		return &fault.Error{Kind: fault.Internal, What: "start the workflow worker", Err: err}
	}
	<-ctx.Done()
	w.Stop()
	return nil
}

// registry is what a worker and a test environment have in common.
type registry interface {
	RegisterWorkflow(w any)
	RegisterActivity(a any)
}

// Register makes all workflows and activities known.
func Register(r registry, a *Activities) {
	r.RegisterWorkflow(Recover)
	r.RegisterWorkflow(PlaceWorkload)
	r.RegisterWorkflow(ReleaseWorkload)
	r.RegisterWorkflow(BootTarget)
	r.RegisterWorkflow(CaptureDisk)
	r.RegisterActivity(a)
}

// RecoveryID is the workflow id of a run: the run itself, so that a second start is the same run.
func RecoveryID(run string) string { return "recovery/" + run }

// Start starts the run's workflow unless it exists already.
func (c *Client) Start(ctx context.Context, r state.Run) error {
	procedure := map[state.RunKind]any{state.KindRecover: Recover, state.KindPlace: PlaceWorkload, state.KindRelease: ReleaseWorkload,
		state.KindCapture: CaptureDisk}[r.Kind]
	_, err := c.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID:                       RecoveryID(r.ID),
		TaskQueue:                TaskQueue,
		WorkflowIDReusePolicy:    enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
	}, procedure, RecoverInput{Run: r.ID, Domain: r.Domain, Runbook: r.Runbook})
	var started *serviceerror.WorkflowExecutionAlreadyStarted
	if err == nil || errors.As(err, &started) {
		return nil
	}
	return &fault.Error{Kind: fault.Unreachable, Where: "run " + r.ID, What: "start its workflow", Err: err}
}

// Approve passes a person's yes to a run.
func (c *Client) Approve(ctx context.Context, run string, by state.Approval) error {
	return c.signal(ctx, RecoveryID(run), SignalApprove, by)
}

// Cancel asks a run to stop at its next safe point.
func (c *Client) Cancel(ctx context.Context, run string) error {
	err := c.temporal.CancelWorkflow(ctx, RecoveryID(run), "")
	return engineError(err, "run "+run, "cancel")
}

// Reached passes a milestone to the workflow that waits for it. A workflow that has ended wants none.
func (c *Client) Reached(ctx context.Context, workflowID string, m Milestone) error {
	err := c.signal(ctx, workflowID, SignalMilestone, m)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (c *Client) signal(ctx context.Context, id, name string, v any) error {
	return engineError(c.temporal.SignalWorkflow(ctx, id, "", name, v), id, "signal "+name)
}

func engineError(err error, where, what string) error {
	if err == nil {
		return nil
	}
	k := fault.Unreachable
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		k = fault.NotFound
	}
	return &fault.Error{Kind: k, Where: where, What: what, Err: err}
}

// Describe says what the engine thinks of a run's workflow, for support.
func (c *Client) Describe(ctx context.Context, run string) (string, error) {
	d, err := c.temporal.DescribeWorkflowExecution(ctx, RecoveryID(run), "")
	if err != nil {
		return "", engineError(err, "run "+run, "describe")
	}
	i := d.GetWorkflowExecutionInfo()
	return fmt.Sprintf("%s, %d events", i.GetStatus(), i.GetHistoryLength()), nil
}
