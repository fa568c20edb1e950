package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// Limits of a capture that no policy sets.
const (
	// captureTries is how often the environment is booted: a machine that resets itself, or loses its way to
	// the array, goes on where it was.
	captureTries = 5
	// captureStall is how long an environment may be silent. It reports every few seconds while the disk and
	// the volume answer, and waits by itself for a volume that is away.
	captureStall = 3 * time.Minute
	// captureLimit bounds the whole copy: 100 TiB at 400 MiB/s take three days.
	captureLimit = 7 * 24 * time.Hour
)

// CaptureScope is what a capture works on, as it was checked when the run began.
type CaptureScope struct {
	Epoch    uint64               `json:"epoch"`
	Machine  string               `json:"machine"`
	Volume   string               `json:"volume"`
	Array    string               `json:"array"`
	Switches []string             `json:"switches"`
	Policy   topology.PolicySpec  `json:"policy"`
	Request  state.CaptureRequest `json:"request"`
}

// CaptureDisk copies a machine's local disk into a volume. The machine is claimed, turned off, put into its
// provisioning network and given the volume alone; it boots the image that copies, as often as it takes. At
// the end, however it comes, the machine is turned off and the volume taken back from it.
func CaptureDisk(ctx workflow.Context, in RecoverInput) (RecoverResult, error) {
	c := &capturing{recovery: newRecovery(in)}
	return c.closing(ctx, func(ctx workflow.Context) (RecoverResult, error) {
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).OpenCapture, in.Run).Get(ctx, &c.sc); err != nil {
			return RecoverResult{}, err
		}
		c.scope = Scope{Epoch: c.sc.Epoch, Policy: c.sc.Policy}
		err := c.run(ctx)
		if end := c.finish(ctx); err == nil {
			err = end
		}
		if err != nil {
			return RecoverResult{}, err
		}
		var said string
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).EndCapture, in.Run).Get(ctx, &said); err != nil {
			return RecoverResult{}, err
		}
		return RecoverResult{State: state.RunDone, Reason: said}, nil
	})
}

type capturing struct {
	*recovery
	sc CaptureScope
	// Set before the step that needs it: what has to be taken back.
	masked, powered bool
}

func (c *capturing) boot(try int) BootInput {
	p := c.sc.Policy.Recovery
	return BootInput{Step: c.step(try), Name: c.sc.Machine, Where: policies.Where{Machine: c.sc.Machine}, Host: true,
		Limits: BootLimits{Power: limits(c.scope).power, Boot: p.BootDeadline.Or(15 * time.Minute), Resend: p.ResendOn.Or(30 * time.Second)}}
}

func (c *capturing) run(ctx workflow.Context) error {
	lim := limits(c.scope)
	err := c.phase(ctx, "power off", func() (string, error) {
		var said string
		err := workflow.ExecuteActivity(device(ctx, lim.power), (*Activities).FreeMachine, c.boot(0), c.sc).Get(ctx, &said)
		return said, err
	})
	if err != nil {
		return err
	}
	if err := c.phase(ctx, "connect", func() (string, error) { return c.connect(ctx) }); err != nil {
		return err
	}
	return c.phase(ctx, "copy", func() (string, error) {
		for try := 1; ; try++ {
			err := c.attempt(ctx, c.boot(try))
			if err == nil || ctx.Err() != nil || try == captureTries || !unanswered(err) {
				return fmt.Sprintf("%d boots", try), err
			}
			workflow.GetLogger(ctx).Warn("a capture goes on with another boot", "run", c.in.Run, "error", err)
			if err := workflow.ExecuteActivity(device(ctx, lim.power), (*Activities).StopCaptured, c.boot(try)).Get(ctx, nil); err != nil {
				return "", err
			}
		}
	})
}

// connect puts the machine into its provisioning network and gives it the volume, and nobody else.
func (c *capturing) connect(ctx workflow.Context) (string, error) {
	lim := limits(c.scope)
	var ports []workflow.Future
	for _, s := range c.sc.Switches {
		in := FenceInput{Run: c.in.Run, Epoch: c.sc.Epoch, Machines: []string{c.sc.Machine}}
		in.Device = s
		ports = append(ports, workflow.ExecuteActivity(device(ctx, lim.device), (*Activities).FreePorts, in))
	}
	c.masked = true
	mask := workflow.ExecuteActivity(device(ctx, lim.device), (*Activities).MaskCapture, c.boot(0), c.sc, true)
	err := mask.Get(ctx, nil)
	for _, f := range ports {
		if perr := f.Get(ctx, nil); err == nil {
			err = perr
		}
	}
	return fmt.Sprintf("%d devices, one commit each", len(ports)+1), err
}

// attempt boots the environment once and follows it to the end of the copy.
func (c *capturing) attempt(ctx workflow.Context, in BootInput) error {
	heard := &milestones{in: in, ch: workflow.GetSignalChannel(ctx, SignalMilestone)}
	heard.take() // what an earlier boot has said
	heard.taken = nil
	err := c.follow(ctx, in, heard)
	// Not deferred: a workflow that is only put aside must not be touched any more.
	heard.take()
	return err
}

func (c *capturing) follow(ctx workflow.Context, in BootInput, heard *milestones) error {
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).PrepareCapture, in).Get(ctx, nil); err != nil {
		return err
	}
	c.powered = true
	if err := workflow.ExecuteActivity(device(ctx, in.Limits.Power), (*Activities).PowerOn, in).Get(ctx, nil); err != nil {
		if !unanswered(err) || !heard.any() {
			return err
		}
	}
	if _, err := heard.await(ctx, in.Limits.Boot, "phone-home"); err != nil {
		return err
	}
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).BeginCapture, in).Get(ctx, nil); err != nil {
		return err
	}
	return workflow.ExecuteActivity(wait(ctx, captureLimit), (*Activities).AwaitCapture, in).Get(ctx, nil)
}

// finish turns the machine off and takes the volume back from it, whether the run has ended well or not. The
// mask does not wait for the power: either keeps the machine from writing.
func (c *capturing) finish(ctx workflow.Context) error {
	if !c.masked && !c.powered {
		return nil
	}
	last, _ := workflow.NewDisconnectedContext(ctx)
	lim := limits(c.scope)
	return c.phase(last, "take back", func() (string, error) {
		var off, mask workflow.Future
		if c.powered {
			off = workflow.ExecuteActivity(device(last, lim.power), (*Activities).StopCaptured, c.boot(0))
		}
		mask = workflow.ExecuteActivity(device(last, lim.device), (*Activities).MaskCapture, c.boot(0), c.sc, false)
		err := mask.Get(last, nil)
		if off == nil {
			return "the volume", err
		}
		if oerr := off.Get(last, nil); oerr != nil {
			// Nobody may take it for a spare that is off.
			in := RetireInput{Step: c.step(0), Lost: losses{Machines: map[string]string{
				c.sc.Machine: "not seen to turn off after its disk was copied: " + reason(oerr)}}}
			if rerr := workflow.ExecuteActivity(quick(last), (*Activities).Retire, in).Get(last, nil); rerr != nil {
				oerr = rerr
			}
			if err == nil {
				err = oerr
			}
		}
		return "the volume, and the machine's power", err
	})
}
