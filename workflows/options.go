// Package workflows holds the durable procedures: Recover, PlaceWorkload, ReleaseWorkload and the boot of
// one target. It is the only package that knows Temporal; the translation from the declared topology to
// what a device is told happens in its activities and nowhere else. Workflow code never sees a secret.
package workflows

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/internal/fault"
)

// TaskQueue is the queue of the control plane's own worker.
const TaskQueue = "rerack"

// Limits are in time, not in attempts: a device that is busy for a minute is retried for a minute.

// All wait for cancellation: what follows a cancelled step, such as the stop of a target that is being
// powered on, must not run beside it.

// quick is for work on the store: milliseconds, repeated until it goes through.
func quick(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout:    20 * time.Second,
		HeartbeatTimeout:       5 * time.Second,
		ScheduleToCloseTimeout: 10 * time.Minute,
		WaitForCancellation:    true,
		RetryPolicy:            retry(200*time.Millisecond, 5*time.Second),
	})
}

// crashAllowance is how many times its limit a batch on devices may take in all. Time in which this
// process was down is not the device's fault; what the device itself refuses ends at the limit (late).
const crashAllowance = 6

// device is for one batch on devices, bounded by the policy's limit for them.
func device(ctx workflow.Context, limit time.Duration) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout:    limit,
		HeartbeatTimeout:       5 * time.Second,
		ScheduleToCloseTimeout: crashAllowance * limit,
		WaitForCancellation:    true,
		RetryPolicy:            retry(300*time.Millisecond, 3*time.Second),
	})
}

// wait is for an activity that watches something until it happens.
func wait(ctx workflow.Context, limit time.Duration) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: limit + time.Minute,
		HeartbeatTimeout:    5 * time.Second,
		WaitForCancellation: true,
		RetryPolicy:         retry(500*time.Millisecond, 5*time.Second),
	})
}

func retry(first, longest time.Duration) *temporal.RetryPolicy {
	return &temporal.RetryPolicy{InitialInterval: first, BackoffCoefficient: 2, MaximumInterval: longest}
}

// toTemporal gives an activity's error its kind as type, so that the engine retries what may succeed
// and nothing else. It is the one mapping from fault kinds to the engine.
func toTemporal(err error) error {
	if err == nil {
		return nil
	}
	var already *temporal.ApplicationError
	if errors.As(err, &already) || errors.Is(err, context.Canceled) {
		return err
	}
	k := fault.KindOf(err)
	if k.Retryable() {
		return temporal.NewApplicationError(err.Error(), k.String())
	}
	return temporal.NewNonRetryableApplicationError(err.Error(), k.String(), nil)
}

// late makes a device's error final once the batch has been tried for its limit, which is the time of
// one attempt. A process that was down meanwhile gets at least one whole attempt when it is back.
func late(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if i := activity.GetInfo(ctx); time.Since(i.ScheduledTime) < onDevices(i) {
		return toTemporal(err)
	}
	return temporal.NewNonRetryableApplicationError(err.Error(), fault.KindOf(err).String(), nil)
}

// reason is the plain sentence in an error that came back from an activity or a child.
func reason(err error) string {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return app.Message()
	}
	var late *temporal.TimeoutError
	if errors.As(err, &late) {
		if cause := errors.Unwrap(late); cause != nil && errors.As(cause, &app) {
			return "no success in time; last: " + app.Message()
		}
		return "no answer in time"
	}
	return err.Error()
}

// onDevices is the part of an activity's time that devices may take: what one has not answered by then is
// told by the activity, by name, and not lost with it.
func onDevices(i activity.Info) time.Duration { return i.StartToCloseTimeout * 8 / 10 }

// atDevices is beating for an activity that calls devices, with the context for these calls.
func atDevices(ctx context.Context) (dev context.Context, stop func()) {
	dev, cancel := context.WithTimeout(ctx, onDevices(activity.GetInfo(ctx)))
	beats := beating(ctx)
	return dev, func() { cancel(); beats() }
}

// beating keeps an activity's heartbeat going while it works, so that a crash of this process is
// noticed in seconds and not after the whole time limit.
func beating(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	go func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				activity.RecordHeartbeat(ctx)
			case <-done:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { close(done) }
}
