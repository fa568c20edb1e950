package vsphere

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	our "rerack.dev/rerack/internal/fault"
)

// lockPoll is how often the lock is asked for while somebody else has it.
const lockPoll = 50 * time.Millisecond

// lock takes the host's lock and returns it: a folder among our VMs, or with a host by itself, which has no
// folders, a resource pool. There are no two of one name, and each has a reference of its own.
func (h *Host) lock(ctx context.Context, p *place) (types.ManagedObjectReference, error) {
	if err := p.makeFolder(ctx); err != nil {
		return types.ManagedObjectReference{}, err
	}
	for {
		ref, err := p.makeLock(ctx)
		if err == nil {
			return ref, nil
		}
		var taken *types.DuplicateName
		if _, dup := fault.As(err, &taken); !dup {
			return ref, err
		}
		switch held := taken.Object; {
		case held != h.other:
			h.other, h.since = held, time.Now()
		case time.Since(h.since) > h.cfg.LockBroken:
			h.cfg.Logger.WarnContext(ctx, "breaking the lock of a change that never ended", "host", h.cfg.Machine)
			// By its reference: who has broken it already, and taken it anew, keeps it.
			if err := p.destroy(ctx, held); err != nil {
				return ref, err
			}
		}
		select {
		case <-ctx.Done():
			return ref, &our.Error{Kind: our.Busy, Evidence: "somebody else's change of this host is still under way", Err: ctx.Err()}
		case <-time.After(lockPoll):
		}
	}
}

func (p *place) makeLock(ctx context.Context) (types.ManagedObjectReference, error) {
	if !p.vim.IsVC() {
		pool, err := p.pool.Create(ctx, lockName, types.DefaultResourceConfigSpec())
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return pool.Reference(), nil
	}
	f, err := p.ownFolder(ctx)
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	if f == nil {
		return types.ManagedObjectReference{}, our.New(our.Busy, "our folder is gone")
	}
	made, err := f.CreateFolder(ctx, lockName)
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	return made.Reference(), nil
}

// makeFolder makes the folder of our VMs.
func (p *place) makeFolder(ctx context.Context) error {
	f, err := p.ownFolder(ctx)
	if err != nil || f != nil {
		return err
	}
	_, err = p.vmFolder.CreateFolder(ctx, folderFor+p.hostName)
	if fault.Is(err, &types.DuplicateName{}) {
		return nil
	}
	return err
}

// destroy removes an object; one that is gone is success.
func (p *place) destroy(ctx context.Context, ref types.ManagedObjectReference) error {
	c := object.NewCommon(p.vim, ref)
	task, err := c.Destroy(ctx)
	if err == nil {
		err = task.Wait(ctx)
	}
	if fault.Is(err, &types.ManagedObjectNotFound{}) {
		return nil
	}
	return err
}

// unlock gives the lock back. One that cannot be given back is broken by the next change in its time.
func (h *Host) unlock(ctx context.Context, ref types.ManagedObjectReference) {
	ctx, end := background(ctx)
	defer end()
	p, err := h.place(ctx)
	if err == nil {
		if err = p.destroy(ctx, ref); err != nil {
			err = p.destroy(ctx, ref)
		}
	}
	if err != nil {
		h.cfg.Logger.WarnContext(ctx, "the host's lock was not given back", "host", h.cfg.Machine, "err", err)
	}
}

// mark makes an epoch the newest of its name, before what is done with it.
func (h *Host) mark(ctx context.Context, p *place, s *snapshot, name string, epoch uint64) error {
	if s.marks[name] >= epoch {
		return nil
	}
	return h.remember(ctx, p, s, markKey+name, strconv.FormatUint(epoch, 10))
}

// remember writes into the extraConfig of a VM that never runs and has no disk.
func (h *Host) remember(ctx context.Context, p *place, s *snapshot, key, value string) error {
	if s.keeper == nil {
		f, err := p.ownFolder(ctx)
		if err != nil {
			return err
		}
		task, err := f.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: keeperVM, NumCPUs: 1, MemoryMB: 4, GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest),
			Annotation:  "Never runs. Rerack remembers here what it did last with each of its VMs on this host; keep it.",
			Files:       &types.VirtualMachineFileInfo{VmPathName: "[" + h.cfg.Datastore + "]"},
			ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: keyName, Value: keeperVM}}}, p.pool, p.host)
		if err != nil {
			return err
		}
		info, err := task.WaitForResult(ctx)
		if err != nil {
			return err
		}
		ref, ok := info.Result.(types.ManagedObjectReference)
		if !ok {
			return our.New(our.Internal, "a new VM has no reference")
		}
		s.keeper = &ref
	}
	vm := object.NewVirtualMachine(p.vim, *s.keeper)
	task, err := vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: key, Value: value}}})
	if err != nil {
		return err
	}
	if err := task.Wait(ctx); err != nil {
		return err
	}
	var back mo.VirtualMachine
	if err := p.props.RetrieveOne(ctx, *s.keeper, []string{"config.extraConfig"}, &back); err != nil {
		return err
	}
	if back.Config != nil {
		for _, o := range back.Config.ExtraConfig {
			if v := o.GetOptionValue(); v != nil && v.Key == key && v.Value == value {
				return nil
			}
		}
	}
	return refuse(our.Unverified, key+" was not kept")
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
