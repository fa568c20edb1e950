package workflows

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

const (
	// imageReading bounds the look at all images of a plan. What has not been read by then is not known to be
	// bad; the boot servers look again before they serve it (hazard H42).
	imageReading = 5 * time.Second
	imagesAtOnce = 4
	// ConstraintImage is the constraint of a workload whose image cannot be booted.
	ConstraintImage = "image"
)

// badImages says of images that would never be served why not. To find that out at the boot of a machine
// would cost its time, and that of the next one.
func (a *Activities) badImages(ctx context.Context, t *topology.Topology, images []string) map[string]string {
	bad := map[string]string{}
	if a.CheckImage == nil {
		return bad
	}
	ctx, cancel := context.WithTimeout(ctx, imageReading)
	defer cancel()
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(imagesAtOnce)
	for _, name := range images {
		spec := t.Images[name].Spec
		for _, d := range append(slices.Clone(spec.Initrds), spec.Kernel, spec.File) {
			if d == "" {
				continue
			}
			g.Go(func() error {
				err := a.CheckImage(ctx, string(d))
				if k := fault.KindOf(err); err != nil && (k == fault.Unverified || k == fault.NotFound) {
					mu.Lock()
					defer mu.Unlock()
					bad[name] = fmt.Sprintf("image %s cannot be booted: %v", name, err)
				}
				return nil
			})
		}
	}
	_ = g.Wait() // the functions return no error
	return bad
}

// bootable parts the pending workloads into those whose images can be booted, and the rest with why. hosts is
// why no machine can be made a Host, or nothing.
func (a *Activities) bootable(ctx context.Context, t *topology.Topology, runbook string, pending []string) (good []string, left []policies.LeftOut, hosts string) {
	hypervisor := t.Runbooks[runbook].Spec.HypervisorImage
	var images []string
	for _, w := range pending {
		images = append(images, t.Workloads[w].Spec.Image)
	}
	if hypervisor != "" {
		images = append(images, hypervisor)
	}
	slices.Sort(images)
	bad := a.badImages(ctx, t, slices.Compact(images))
	for _, w := range pending {
		if why := bad[t.Workloads[w].Spec.Image]; why != "" {
			left = append(left, policies.LeftOut{Workload: w, Constraint: ConstraintImage, Reason: why})
			continue
		}
		good = append(good, w)
	}
	return good, left, bad[hypervisor]
}
